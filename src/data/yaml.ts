import {
  Composer,
  type CST,
  type Document,
  isAlias,
  isCollection,
  isMap,
  isScalar,
  Lexer,
  type Node,
  Parser,
  type Scalar,
} from 'yaml'
import { LoopLMError } from '../errors.js'
import { prototypeKey } from '../validation/json-value.js'

/** The deepest nesting of a YAML text. The parser and the code that reads its result are recursive. */
const maxYamlDepth = 100

/**
 * Parses YAML from a file or the command line, in time linear in its length.
 *
 * @param operation the text's name in errors
 * @throws LoopLMError INVALID_FILE naming the line, for text that is not YAML, is nested too deeply, or has a key twice, a key
 *   `__proto__` or an alias within the value that it stands for
 */
export function parseYaml(text: string, operation: string): Document {
  const tokens = tokensOf(text, operation)
  // without pretty errors and uniqueKeys, whose cost is quadratic in the number of errors and keys
  const composer = new Composer({ prettyErrors: false, uniqueKeys: false })
  const [document, second] = composer.compose(tokens, true, text.length) as Iterable<Document> as [Document, Document?]
  const [problem] = document.errors
  if (problem !== undefined) throw invalid(text, problem.message, problem.pos[0], operation, problem)
  if (second !== undefined) throw invalid(text, 'a second document begins', second.range![0], operation)
  checkNode(document.contents as Node | null, new Map(), new Set(), (message, node) =>
    invalid(text, message, node.range?.[0] ?? 0, operation),
  )
  return document
}

/**
 * A document's content with its aliases resolved.
 * @throws LoopLMError INVALID_FILE if aliases multiply the content
 */
export function yamlValue(document: Document, operation: string): unknown {
  try {
    return document.toJS()
  } catch (cause) {
    throw new LoopLMError('INVALID_FILE', (cause as Error).message, { operation, cause })
  }
}

function invalid(text: string, problem: string, at: number, operation: string, cause?: unknown): LoopLMError {
  const before = text.slice(0, at).split('\n')
  const place = `line ${before.length}, column ${before.at(-1)!.length + 1}`
  return new LoopLMError('INVALID_FILE', `${problem} at ${place}`, { operation, cause })
}

/** The text's syntax. Its depth is checked with the parser's own stack, which is not a call stack. */
function tokensOf(text: string, operation: string): CST.Token[] {
  const parser = new Parser()
  const tokens: CST.Token[] = []
  for (const lexeme of new Lexer().lex(text)) {
    for (const token of parser.next(lexeme)) tokens.push(token)
    if (parser.stack.length > 2 * maxYamlDepth) {
      throw new LoopLMError('INVALID_FILE', `is nested more than ${maxYamlDepth} deep`, { operation })
    }
  }
  return [...tokens, ...parser.end()]
}

type Refuse = (message: string, node: Node) => LoopLMError

/**
 * @param anchors the nodes so far by the names of their anchors
 * @param above the nodes that contain this one
 */
function checkNode(node: Node | null, anchors: Map<string, Node>, above: Set<Node>, refuse: Refuse): void {
  if (isAlias(node)) {
    const target = anchors.get(node.source)
    if (target !== undefined && above.has(target)) throw refuse(`the alias *${node.source} stands within its own value`, node)
    return
  }
  if (node === null) return
  const { anchor } = node as { anchor?: string }
  if (anchor !== undefined) anchors.set(anchor, node)
  if (!isCollection(node)) return
  above.add(node)
  const keys = new Set<string>()
  for (const item of node.items as (Node | { key: Node; value: Node | null })[]) {
    if (!isMap(node)) checkNode(item as Node, anchors, above, refuse)
    else {
      const { key, value } = item as { key: Node; value: Node | null }
      if (!isScalar(key)) throw refuse('a key must be a plain value', key)
      const name = String((key as Scalar).value)
      if (name === prototypeKey) throw refuse(`${prototypeKey} cannot be a key`, key)
      if (keys.has(name)) throw refuse(`Map keys must be unique, ${JSON.stringify(name)} is there twice`, key)
      keys.add(name)
      checkNode(value, anchors, above, refuse)
    }
  }
  above.delete(node)
}
