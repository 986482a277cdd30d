/*
 * The worker thread that runs grammars: compiling one blocks a CPU for tenths of a second up to many seconds, and a fault of the
 * library ends the thread.
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { types } from 'node:util'
import { compileFunction, constants } from 'node:vm'
import { parentPort } from 'node:worker_threads'
import { errorMessage } from '../errors.js'

/** A call of the thread. The caller chooses the numbers. */
export type GrammarCall =
  /** `tokens`: by id, in the characters of a byte-level vocabulary, '' for unused ids. The end token follows them. */
  | { kind: 'vocabulary'; vocabulary: number; tokens: readonly string[] }
  | { kind: 'compile'; vocabulary: number; grammar: number; ebnf: string }
  | { kind: 'forget'; grammar: number }
  | { kind: 'forget vocabulary'; vocabulary: number }
  /** `moves`: per row its session, its grammar if it begins (else -1), and the token that it drew (else -1). */
  | { kind: 'masks'; moves: Int32Array; closed: readonly number[] }

export type GrammarRequest = GrammarCall & { id: number }

/**
 * `masks`: per move the tokens that may come next, bit v % 32 of word v / 32. The bit of the end follows those of the tokens.
 */
export type GrammarAnswer = { id: number; masks?: Int32Array } | { id: number; problem: string }

/** The functions of @mlc-ai/web-xgrammar that are used. */
interface Library {
  Grammar: { fromEBNF(ebnf: string): Promise<Disposable> }
  TokenizerInfo: {
    createTokenizerInfo(tokens: string[], type: string, space: boolean, size: number, stops: number[]): Promise<Disposable>
  }
  GrammarCompiler: { createGrammarCompiler(info: Disposable, cached: boolean): Promise<GrammarCompiler> }
  GrammarMatcher: { createGrammarMatcher(grammar: Disposable): Promise<GrammarMatcher> }
}
/** An object in the memory of the library, which keeps it until it is disposed of. */
interface Disposable {
  dispose(): void
}
interface GrammarCompiler extends Disposable {
  compileGrammar(grammar: Disposable): Promise<Disposable>
}
interface GrammarMatcher extends Disposable {
  acceptToken(token: number): boolean
  getNextTokenBitmask(): Promise<Int32Array>
}

/** Loads the package, which is CommonJS although its package.json says otherwise. */
function load(log: (line: string) => void): Library {
  process.removeAllListeners('warning') // in this thread: the loader warns that it is experimental
  const require = createRequire(import.meta.url)
  const filename = require.resolve('@mlc-ai/web-xgrammar')
  const module = { exports: {} as Library }
  const write = (...parts: unknown[]) => log(parts.join(' '))
  const names = ['exports', 'module', 'require', '__filename', '__dirname', 'console']
  const run = compileFunction(readFileSync(filename, 'utf8'), names, {
    filename,
    importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  })
  run(module.exports, module, require, filename, dirname(filename), { log: write, warn: write, error: write, info: write })
  return module.exports
}

let lines: string[] = []
const library = load((line) => lines.push(line))
const compilers = new Map<number, GrammarCompiler>()
const grammars = new Map<number, Disposable>()
const sessions = new Map<number, GrammarMatcher>()

let turn: Promise<void> = Promise.resolve() // requests are handled one after the other
parentPort!.on('message', (request: GrammarRequest) => {
  turn = turn.then(async () => {
    const answer = await answerTo(request)
    parentPort!.postMessage(answer, 'masks' in answer && answer.masks !== undefined ? [answer.masks.buffer as ArrayBuffer] : [])
  })
})

async function answerTo(request: GrammarRequest): Promise<GrammarAnswer> {
  const { id } = request
  lines = []
  try {
    const masks = await carryOut(request)
    return masks === undefined ? { id } : { id, masks }
  } catch (error) {
    const said = lines.map((line) => /\[FATAL\].*?:\d+: (.*)/s.exec(line)?.[1]?.trim()).find((line) => line !== undefined)
    const trapped = types.isNativeError(error) && ['RuntimeError', 'RangeError'].includes(error.name)
    const remedy = trapped ? '; the library of grammars failed on it: make the grammar smaller, or nest it less' : ''
    return { id, problem: said ?? errorMessage(error) + remedy }
  }
}

async function carryOut(request: GrammarRequest): Promise<Int32Array | undefined> {
  if (request.kind === 'masks') return masksOf(request.moves, request.closed)
  if (request.kind === 'forget') {
    grammars.get(request.grammar)?.dispose()
    grammars.delete(request.grammar)
  } else if (request.kind === 'vocabulary') {
    const { tokens, vocabulary } = request
    const size = tokens.length + 1
    const info = await library.TokenizerInfo.createTokenizerInfo([...tokens, ''], 'byte_level', false, size, [tokens.length])
    compilers.set(vocabulary, await library.GrammarCompiler.createGrammarCompiler(info, false))
    info.dispose() // the compiler has its own copy
  } else if (request.kind === 'forget vocabulary') {
    compilers.get(request.vocabulary)?.dispose()
    compilers.delete(request.vocabulary)
  } else grammars.set(request.grammar, await compile(request.vocabulary, request.ebnf))
  return undefined
}

async function compile(vocabulary: number, ebnf: string): Promise<Disposable> {
  const grammar = await library.Grammar.fromEBNF(ebnf) // not left to compileGrammar, which would never dispose of it
  try {
    return await compilers.get(vocabulary)!.compileGrammar(grammar)
  } finally {
    grammar.dispose()
  }
}

async function masksOf(moves: Int32Array, closed: readonly number[]): Promise<Int32Array> {
  for (const session of closed) {
    sessions.get(session)?.dispose()
    sessions.delete(session)
  }
  let masks: Int32Array | undefined
  const rows = moves.length / 3
  for (let row = 0; row < rows; row++) {
    const [session, grammar, token] = moves.subarray(3 * row, 3 * row + 3) as unknown as [number, number, number]
    if (grammar >= 0) sessions.set(session, await library.GrammarMatcher.createGrammarMatcher(grammars.get(grammar)!))
    const matcher = sessions.get(session)!
    if (token >= 0 && !matcher.acceptToken(token)) throw new Error(`the grammar refused token ${token}, which its mask allowed`)
    const mask = await matcher.getNextTokenBitmask()
    masks ??= new Int32Array(rows * mask.length)
    masks.set(mask, row * mask.length)
  }
  return masks ?? new Int32Array()
}
