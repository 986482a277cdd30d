// Every example that a user can copy: code and commands of README and docs run, docstrings and examples/ compile.
import { execFile, execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { join, relative } from 'node:path'
import { promisify } from 'node:util'
import { Command } from 'commander'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { parse } from 'yaml'
import * as looplm from '../src/index.js'
import { OneProcess, program, runProgram } from './cli/program.js'
import { writeOuroFolder } from './ouro-folder.js'

const root = join(import.meta.dirname, '..')
mkdirSync(join(root, 'runs'), { recursive: true })
const folder = mkdtempSync(join(root, 'runs', 'examples-')) // inside the checkout, where the compiler finds the types of node
const start = process.cwd()
beforeAll(async () => {
  process.chdir(folder)
  await writeDownloaded('ByteDance/Ouro-1.4B')
})
afterAll(() => {
  process.chdir(start)
  vi.unstubAllEnvs()
  rmSync(folder, { recursive: true })
})

/** A tiny model of the published form, where the Hugging Face Hub's cache has the model of that name. */
async function writeDownloaded(name: string): Promise<void> {
  vi.stubEnv('HF_HUB_CACHE', join(folder, 'hub'))
  const repository = join(folder, 'hub', `models--${name.replace('/', '--')}`)
  const commit = '0'.repeat(40)
  mkdirSync(join(repository, 'refs'), { recursive: true })
  writeFileSync(join(repository, 'refs', 'main'), commit)
  await writeOuroFolder(join(repository, 'snapshots', commit))
}

/** Paths below `folder` that end so, relative to the checkout. */
const files = (below: string, end: string) =>
  readdirSync(join(root, below), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith(end))
    .map((name) => join(below, name))

const publicNames = Object.keys(looplm)

/** A fenced block: its language, the file that it is said to be, its text. */
interface Block {
  language: string
  file: string | undefined
  text: string
}
const blocks = (text: string): Block[] =>
  [...text.matchAll(/^```(\w+)(?: (\S+))?\n([\s\S]*?)^```/gm)].map((match) => ({
    language: match[1]!,
    file: match[2],
    text: match[3]!,
  }))
const guides = files('docs', '.md').filter((name) => !/node_modules|docs.site/.test(name)) // without what is installed or built
const documents = ['README.md', 'CONTRIBUTING.md', ...guides].map((name) => {
  const all = blocks(readFileSync(join(root, name), 'utf8'))
  return { name, all, code: all.filter(({ language }) => language === 'ts').map(({ text }) => text) }
})
/** The commands of the workflows, as blocks of a document. */
const workflows = files('.github/workflows', '.yml').map((name) => {
  const { jobs } = parse(readFileSync(join(root, name), 'utf8')) as { jobs: Record<string, { steps: { run?: string }[] }> }
  const runs = Object.values(jobs).flatMap(({ steps }) => steps.flatMap(({ run }) => run ?? []))
  return { name, all: runs.map((text) => ({ language: 'sh', file: undefined, text: text.replaceAll('../checkout/', '') })) }
})
const moduleName = (document: string, i: number) => `${document.replaceAll(/\W/g, '-')}-${i}.ts`

/** Carries out `looplm` for the programs below, which say how many words follow, their folder and the words; gives its port. */
async function listen(one: OneProcess): Promise<{ port: number; close: () => void }> {
  const alone = new Set(['estimate', 'export', 'plan']) // no other test starts these as separate processes
  const server = createServer((socket) => {
    let said = ''
    socket.setEncoding('utf8').on('data', (text: string) => {
      said += text
      const [count, cwd, ...words] = said.split('\0').slice(0, -1)
      if (cwd === undefined || words.length < Number(count)) return
      const outcome = alone.delete(words[0]!) ? runProgram(words, { cwd }) : one.looplm(cwd, words)
      void outcome.then(
        ({ code, stdout, stderr }) => socket.end(`${code}\n${stdout}${stderr}`),
        (error: Error) => socket.end(`1\n${error.message}`),
      )
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return { port: (server.address() as AddressInfo).port, close: () => server.close() }
}

/**
 * Programs that stand in for those of a document: `npx looplm` is the built program, of `npm run` it is checked that there is such a
 * script, what serves or chats is ended, and what installs or downloads does nothing.
 */
function writeStandIns(): string {
  const bin = join(folder, 'bin')
  mkdirSync(bin)
  const scripts = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).scripts
  const known = [...Object.keys(scripts), 'ci', 'install', 'test'].join('|')
  const programs = {
    npx: `case "$1 $2" in
      "looplm watch"|"looplm serve"|"looplm chat")
        shift; said=$(mktemp); "${process.execPath}" "${program}" "$@" > $said 2>&1 &
        while kill -0 $! && [ ! -s $said ]; do sleep 0.1; done; kill -INT $!; wait $! || true; cat $said; rm $said;;
      "looplm download") ;;
      looplm*)
        shift; exec 3<>/dev/tcp/127.0.0.1/$LOOPLM_PORT; printf '%s\\0' $# "$PWD" "$@" >&3
        read -r code <&3; cat <&3; exit $code;;
      vitest*) test -e "${root}/$3";;
      *) echo "npx $1?" >&2; exit 1;;
    esac`,
    npm: `[ "$1" = run ] && shift; case "$1" in ${known}) ;; *) echo "no script $1" >&2; exit 1;; esac`,
    sudo: 'true',
    'apt-get': 'true',
  }
  for (const [name, body] of Object.entries(programs)) {
    writeFileSync(join(bin, name), `#!/usr/bin/env bash\n${body}\n`)
    chmodSync(join(bin, name), 0o755)
  }
  return bin
}

/** What docstrings may take for granted. */
const context = `
declare const model: looplm.LoopLM
declare const trainer: looplm.RLTTTrainer
declare const task: looplm.Task
declare const tokenizer: looplm.Tokenizer
declare const sequences: number[][]
declare const batch: looplm.RolloutBatch
declare const promptLengths: number[]
declare const coefficients: Float32Array[]
declare const dataset: looplm.Dataset
declare const hidden: looplm.Tensor<'float32'>
declare const headWeight: looplm.Tensor<'float32'>
declare const targets: looplm.Tensor<'int32'>
declare const weights: looplm.Tensor<'float32'>
declare const advantages: looplm.Tensor<'float32'>
declare const mask: looplm.Tensor<'float32'>
declare const writeFile: (path: string, text: string) => Promise<void>
`

/** The @example of every docstring below src/, as one module that compiles where it stands. */
function docstringExamples(): { name: string; text: string }[] {
  return files('src', '.ts').flatMap((file) => {
    const source = readFileSync(join(root, file), 'utf8')
    const own = [...source.matchAll(/^export (?:abstract )?(?:async )?(?:function\*? |class |const )(\w+)/gm)].map(
      (match) => match[1]!,
    )
    const examples = [...source.matchAll(/@example\s*\n\s*\* ```ts\n([\s\S]*?)\n\s*\* ```/g)]
    return examples.map((match, i) => {
      const lines = match[1]!.split('\n').map((line) => line.replace(/^\s*\* ?/, ''))
      const imports = lines.filter((line) => line.startsWith('import '))
      const imported = imports.join(' ')
      const free = (name: string) => !new RegExp(`\\b${name}\\b`).test(imported)
      const inner = own.filter((name) => !publicNames.includes(name)).filter(free)
      const text = [
        "import * as looplm from 'looplm'",
        `import { ${publicNames.filter(free).join(', ')} } from 'looplm'`,
        ...(inner.length > 0
          ? [`import { ${inner.join(', ')} } from '${relative(folder, join(root, 'dist', file)).replace(/\.ts$/, '.js')}'`]
          : []),
        ...imports,
        context,
        'export async function example() {',
        ...lines.filter((line) => !line.startsWith('import ')),
        '}',
      ]
      return { name: `${file.replaceAll('/', '-').replace(/\.ts$/, '')}-${i}.ts`, text: text.join('\n') }
    })
  })
}

/** The commands of the program, as src/cli adds them. */
async function commandLine(): Promise<Command> {
  const program = new Command('looplm').option('--version').option('--help')
  for (const file of files('src/cli', '.ts').filter((name) => !name.endsWith('main.ts')))
    for (const [name, add] of Object.entries(await import(join(root, file))))
      if (/^add[A-Z]/.test(name)) (add as (program: Command) => void)(program)
  return program
}

/** Words of a command line; quotes hold some together. */
const wordsOf = (line: string) => (line.match(/(?:'[^']*'|"[^"]*"|[^\s'"])+/g) ?? []).map((word) => word.replaceAll(/['"]/g, ''))

/** The command lines of a document, in its blocks and between backticks. */
function commandLines({ name, all }: { name: string; all: Block[] }): { name: string; words: string[] }[] {
  const shell = all.filter(({ language }) => language === 'sh' || language === 'text').map(({ text }) => text)
  const prose = readFileSync(join(root, name), 'utf8').replaceAll(/^```[\s\S]*?^```/gm, '')
  const inline = [...prose.matchAll(/`((?:npx looplm|npm run|node tools\/)[^`…]*)/g)].map((match) =>
    match[1]!.replaceAll('\n', ' '),
  )
  const lines = [...shell.flatMap((text) => text.replaceAll('\\\n', ' ').split('\n')), ...inline]
  return lines
    .flatMap((line) => line.replace(/(^|\s)#.*/, '').split(/&&|;|\|/))
    .map((line) => ({ name, words: wordsOf(line) }))
    .filter(({ words: [first, second] }) => (first === 'npx' && second === 'looplm') || first === 'npm' || first === 'node')
}

function checkLooplm(program: Command, words: string[], wrong: (what: string) => void): void {
  const [name, ...rest] = words
  if (name === undefined || name.startsWith('--') || name === 'COMMAND') return // COMMAND is any of them
  const command = program.commands.find((one) => one.name() === name)
  if (command === undefined) {
    wrong(`looplm has no command ${name}`)
    return
  }
  let given = 0
  for (let i = 0; i < rest.length; i++) {
    const word = rest[i]!
    if (!/^--?[a-z]/.test(word)) {
      given++
      continue
    }
    const option = [...command.options, ...program.options].find(({ long, short }) => [long, short].includes(word.split('=')[0]))
    if (option === undefined) wrong(`looplm ${name} has no ${word}`)
    else if (!word.includes('=') && (option.required || (option.optional && !(rest[i + 1] ?? '--').startsWith('-')))) i++
  }
  const { registeredArguments: args } = command
  const [least, most] = [
    args.filter(({ required }) => required).length,
    args.some(({ variadic }) => variadic) ? Infinity : args.length,
  ]
  // prose names a command without what it works on
  if (given > most || (given > 0 && given < least))
    wrong(`looplm ${name} ${given > most ? 'takes' : 'wants'} ${given > most ? most : least} arguments, here are ${given}`)
}

/** The source of what a script of package.json runs. */
function sourcesOf(script: string): string {
  const [, compiled] = /node dist\/(\w+)\/\w+\.js$/.exec(script) ?? []
  const [, tool] = /node (tools\/[\w-]+\.mjs)$/.exec(script) ?? []
  const found = compiled === undefined ? [tool].filter((name) => name !== undefined) : files(compiled, '.ts')
  return found.map((name) => readFileSync(join(root, name), 'utf8')).join('\n')
}

function checkFlags(source: string, words: string[], wrong: (what: string) => void): void {
  for (const word of words.filter((word) => /^--\w/.test(word)))
    if (!new RegExp(`\\b${word.slice(2).split('=')[0]}\\b`).test(source)) wrong(`there is no ${word} in what it runs`)
}

describe('examples', () => {
  it('compile in docstrings, documents and examples/', () => {
    const examples = docstringExamples()
    expect(examples.length).toBeGreaterThan(30)
    for (const { name, text } of examples) writeFileSync(join(folder, name), text)
    for (const { name, code } of documents)
      for (const [i, text] of code.entries()) writeFileSync(join(folder, moduleName(name, i)), text)
    const config = {
      extends: relative(folder, join(root, 'tsconfig.json')),
      compilerOptions: {
        noEmit: true,
        noUncheckedIndexedAccess: false, // a docstring indexes what its reader knows to be there
        rootDir: relative(folder, root),
        paths: { looplm: [`./${relative(folder, join(root, 'dist/src/index.d.ts'))}`] },
      },
      include: ['*.ts', relative(folder, join(root, 'examples/*.ts'))],
    }
    writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config))
    let output = ''
    try {
      execFileSync(join(root, 'node_modules/.bin/tsc'), ['-p', join(folder, 'tsconfig.json')], { encoding: 'utf8' })
    } catch (error) {
      output = (error as { stdout: string }).stdout
    }
    expect(output.split('\n')).toEqual([''])
  })

  it.each([
    ['fastify', /^8 answers; the fourth has \d+ tokens.*\ntrue\n$/],
    ['openai-client', /^whole: [\s\S]*mean_loops: [\d.]+[\s\S]*streamed the same text: true\n$/],
    ['worker', /^(\w+ → 16 tokens, mean log-probability -[\d.]+: .*\n){3}$/],
    [
      'context-compressor',
      /^whole prompts: 3\d\.\d tokens, right .*\nvectors and kept tokens: 11\.0 positions, right .*\nkept tokens alone: 9\.0 tokens, right .*\n$/,
      ['3', '1', '20'],
    ],
    ['chat-modes', /^\| mode \|.*\n\| --- .*\n\| `no-think` \| [\s\S]*\| `auto`, default \| .* %.* \|\n$/, ['0.002']],
    ['vectors', /^states 4 × 7 × 64; .*: true\nagrees with score\(\): true\n$/],
  ] as [string, RegExp, string[]?][])('examples/%s.ts runs', (name, said, words = []) => {
    const program = join(root, 'dist', 'examples', `${name}.js`)
    expect(execFileSync(process.execPath, [program, ...words], { encoding: 'utf8' })).toMatch(said)
  })

  for (const { name, code } of documents.filter(({ code }) => code.length > 0))
    it.each(code.map((text, i) => [i, text] as const))(`block %i of ${name} runs`, async (i, text) => {
      const file = join(folder, moduleName(name, i))
      writeFileSync(file, text)
      const said: unknown[] = []
      const log = console.log
      console.log = (...values: unknown[]) => said.push(values)
      try {
        await import(file)
      } finally {
        console.log = log
      }
      expect(said.length).toBeGreaterThan(0)
    })

  const bin = writeStandIns()
  let one: OneProcess
  let looplmServer: Awaited<ReturnType<typeof listen>>
  beforeAll(async () => {
    one = new OneProcess()
    looplmServer = await listen(one)
  })
  afterAll(async () => {
    looplmServer.close()
    await one[Symbol.asyncDispose]()
  })
  /** A tenth of the steps, in files and commands alike. */
  const shorter = (text: string) => text.replaceAll(/\b(steps: |steps=|step-|evalEvery: )(\d+)0\b/g, '$1$2')
  const withCommands = documents.filter(({ all }) => all.some(({ language }) => language === 'sh'))
  it.each(withCommands.map(({ name, all }) => [name, all] as const))('the commands of %s run', async (name, all) => {
    const place = join(folder, `commands-${name.replaceAll(/\W/g, '-')}`)
    mkdirSync(place)
    for (const { file, text } of all) if (file !== undefined) writeFileSync(join(place, file), shorter(text))
    const env = { ...process.env, PATH: `${bin}:${process.env.PATH}`, LOOPLM_PORT: String(looplmServer.port) }
    for (const { language, text } of all) {
      if (language !== 'sh') continue
      const failed = await promisify(execFile)('bash', ['-e', '-c', shorter(text)], { cwd: place, env }).then(
        () => '',
        ({ stdout, stderr }) => `${text}\n${stdout}${stderr}`,
      )
      expect(failed).toBe('')
    }
  })

  it('command lines of documents and workflows name existing commands, flags, scripts and files', async () => {
    const program = await commandLine()
    const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
    const problems: string[] = []
    let checked = 0
    for (const { name, words } of [...documents, ...workflows].flatMap(commandLines)) {
      const wrong = (what: string) => problems.push(`${name}: ${words.join(' ')}: ${what}`)
      checked++
      const [first, second, ...rest] = words
      if (first === 'npx' && second === 'looplm') checkLooplm(program, rest, wrong)
      else if (first === 'node' && !existsSync(join(root, second!))) wrong(`no file ${second}`)
      else if (first === 'npm' && second === 'run') {
        const [script, ...given] = rest
        if (!Object.hasOwn(scripts, script!)) wrong(`no script ${script}`)
        else checkFlags(sourcesOf(scripts[script!]), given, wrong)
      }
    }
    expect(problems).toEqual([])
    expect(checked).toBeGreaterThan(40)
  })

  it('the check finds unknown commands, unknown flags and wrong numbers of arguments', async () => {
    const program = await commandLine()
    const problems: string[] = []
    const wrong = (what: string) => problems.push(what)
    checkLooplm(program, ['serve', 'FOLDER', '--dtype', 'bfloat16', '--no-such'], wrong)
    checkLooplm(program, ['sing'], wrong)
    checkLooplm(program, ['quantize', 'FOLDER'], wrong)
    checkLooplm(program, ['info', 'MODEL', 'MORE'], wrong)
    checkFlags(sourcesOf('node tools/fuzz.mjs'), ['--', '--minutes', '10', '--hours', '1'], wrong)
    expect(problems).toEqual([
      'looplm serve has no --no-such',
      'looplm has no command sing',
      'looplm quantize wants 2 arguments, here are 1',
      'looplm info takes 1 arguments, here are 2',
      'there is no --hours in what it runs',
    ])
  })

  it('every other block of README and docs is a named file or plain text', () => {
    const others = documents.flatMap(({ all }) => all.filter(({ language, file }) => !['ts', 'sh'].includes(language) && !file))
    expect(others.filter(({ language }) => language !== 'text')).toEqual([])
  })
})

describe('the documents', () => {
  it('have no broken relative links', () => {
    let checked = 0
    for (const { name } of documents) {
      const text = readFileSync(join(root, name), 'utf8').replaceAll(/^```[\s\S]*?^```/gm, '')
      const links = [...text.matchAll(/\]\(([^)#\s]+)/g)].map((match) => match[1]!).filter((link) => !/^https?:/.test(link))
      for (const link of links) expect([name, link, existsSync(join(root, name, '..', link))]).toEqual([name, link, true])
      checked += links.length
    }
    expect(checked).toBeGreaterThan(50)
  })

  it('are all listed in docs/README.md, each once', () => {
    const index = readFileSync(join(root, 'docs/README.md'), 'utf8')
    const listed = [...index.matchAll(/\]\(([\w-]+\.md)\)/g)].map((match) => join('docs', match[1]!))
    expect(listed.sort()).toEqual(guides.filter((name) => name !== 'docs/README.md').sort())
  })

  it('configuration.md, metrics.md and command-line.md are up to date', () => {
    const { status, stderr } = spawnSync(process.execPath, [join(root, 'tools', 'reference.mjs'), '--check'], {
      encoding: 'utf8',
    })
    expect(stderr).toBe('')
    expect(status).toBe(0)
  })
})
