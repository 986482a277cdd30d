import { type Document, isAlias, isCollection, isMap, isScalar, Lexer, type Node, Parser, parseDocument, type Scalar } from 'yaml'
import { LoopLMError } from '../errors.js'
import { prototypeKey } from '../validation/json-value.js'

/** Deepest nesting of a YAML text: the parser and all that reads its result call themselves. */
const maxYamlDepth = 100

/**
 * Parses YAML from a file or the command line, in time linear in its length.
 *
 * @param operation how errors name the text
 * @throws LoopLMError INVALID_FILE naming the line, for what is no YAML, nested too deeply, or has a key twice, a key `__proto__` or an
 *   alias within the value that it stands for
 */
export function parseYaml(text: string, operation: string): Document {
  checkDepth(text, operation)
  // without pretty errors and uniqueKeys, whose cost grows with the square of the errors and of the keys
  const document = parseDocument(text, { prettyErrors: false, uniqueKeys: false })
  const [problem] = document.errors
  if (problem !== undefined) throw invalid(text, problem.message, problem.pos[0], operation, problem)
  checkNode(document.contents as Node | null, new Map(), new Set(), (message, node) =>
    invalid(text, message, node.range?.[0] ?? 0, operation),
  )
  return document
}

/** A document's content, its aliases resolved. @throws LoopLMError INVALID_FILE for aliases that multiply it */
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

/** The parser's own stack grows with every level, and is no stack of calls. */
function checkDepth(text: string, operation: string): void {
  const parser = new Parser()
  for (const lexeme of new Lexer().lex(text)) {
    for (const _ of parser.next(lexeme));
    if (parser.stack.length > 2 * maxYamlDepth) {
      throw new LoopLMError('INVALID_FILE', `is nested more than ${maxYamlDepth} deep`, { operation })
    }
  }
}

type Refuse = (message: string, node: Node) => LoopLMError

/**
 * @param anchors the nodes so far by the names of their anchors
 * @param above the nodes that this one is in
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
