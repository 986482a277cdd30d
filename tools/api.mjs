// Writes api/looplm.api.md: every declaration that users of the package can reach, without comments. --check changes nothing; it says
// where the file is not current, and which declarations have no text for editors to show. It reads the declarations of the build, or of
// the folder that a test names.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import * as ast from 'typescript/unstable/ast'
import { API, SymbolFlags } from 'typescript/unstable/sync'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { SyntaxKind } = ast

/** Opens the declarations below a folder as a project. */
function openProject(folder) {
  const config = join(folder, 'tsconfig.json')
  const compilerOptions = {
    module: 'nodenext',
    target: 'es2023',
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    types: ['node'],
  }
  const text = JSON.stringify({ compilerOptions, files: [join(folder, 'index.d.ts')] })
  const fs = {
    readFile: (path) => (path === config ? text : undefined),
    fileExists: (path) => (path === config ? true : undefined),
  }
  const api = new API({ cwd: folder, fs })
  const project = api.updateSnapshot({ openProjects: [config] }).getProject(config)
  return { api, project }
}

/** Members of the class alone and those marked @internal are not part of the interface. */
function isHidden(node) {
  if (node.name?.kind === SyntaxKind.PrivateIdentifier) return true
  if (node.modifiers?.some(({ kind }) => kind === SyntaxKind.PrivateKeyword || kind === SyntaxKind.ProtectedKeyword)) return true
  return (node.jsDoc ?? []).some((comment) => comment.getText().includes('@internal'))
}

/** The visible nodes below a declaration, itself first. */
function* visible(node) {
  if (isHidden(node)) return
  yield node
  const children = []
  node.forEachChild((child) => {
    children.push(child)
  })
  for (const child of children) yield* visible(child)
}

const statements = new Set([
  SyntaxKind.ClassDeclaration,
  SyntaxKind.EnumDeclaration,
  SyntaxKind.FunctionDeclaration,
  SyntaxKind.InterfaceDeclaration,
  SyntaxKind.TypeAliasDeclaration,
  SyntaxKind.VariableStatement,
])
const members = new Set([
  SyntaxKind.EnumMember,
  SyntaxKind.GetAccessor,
  SyntaxKind.MethodDeclaration,
  SyntaxKind.MethodSignature,
  SyntaxKind.PropertyDeclaration,
  SyntaxKind.PropertySignature,
  SyntaxKind.SetAccessor,
])

const accessors = new Set([SyntaxKind.GetAccessor, SyntaxKind.SetAccessor])

/** The statement that a declaration belongs to; undefined for parameters, members and type parameters. */
function statementOf(declaration) {
  if (declaration === undefined) return undefined
  const node = declaration.kind === SyntaxKind.VariableDeclaration ? declaration.parent.parent : declaration
  return statements.has(node.kind) ? node : undefined
}

/** Reads all that can be reached from the exports of `index.d.ts`: exported or not, in order of their names. */
function readDeclarations(folder) {
  const { api, project } = openProject(folder)
  const { checker, program } = project
  const target = (symbol) => (symbol.flags & SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol)
  const found = new Map() // statement → { name, exported, nodes }
  const queue = []
  const add = (symbol, exported) => {
    for (const handle of target(symbol).declarations) {
      if (!handle.path.startsWith(folder)) continue
      const statement = statementOf(handle.resolve(project))
      if (statement === undefined || isHidden(statement)) continue
      const key = `${handle.path}:${statement.getStart()}`
      if (found.has(key)) continue
      const entry = { name: symbol.name, exported, statement, nodes: [...visible(statement)] }
      found.set(key, entry)
      queue.push(entry)
    }
  }
  const index = program.getSourceFile(join(folder, 'index.d.ts'))
  for (const symbol of checker.getExportsOfModule(checker.getSymbolAtLocation(index))) add(symbol, true)
  for (let entry = queue.shift(); entry !== undefined; entry = queue.shift()) {
    const names = entry.nodes.filter(({ kind }) => kind === SyntaxKind.Identifier)
    for (const symbol of checker.getSymbolAtLocation(names)) if (symbol !== undefined) add(target(symbol), false)
  }
  const declarations = [...found.values()].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))
  const typeOf = (name) => checker.getDeclaredTypeOfSymbol(target(checker.getSymbolAtLocation(name)))
  /** What the compiler knows of a member of a type that an expression names. */
  const textOf = (expression, member) => {
    const symbol = checker.getPropertyOfType(typeOf(expression), member)
    return symbol === undefined ? '' : checker.getDocumentationCommentOfSymbol(symbol)
  }
  /** Members of an interface, those of the types that it extends included, of which the compiler knows no text. */
  const textless = ({ name }) =>
    checker
      .getPropertiesOfType(typeOf(name))
      .filter((symbol) => checker.getDocumentationCommentOfSymbol(symbol) === '')
      .map((symbol) => symbol.name)
  return { declarations, textOf, textless, close: () => api.close() }
}

/** A line in parts of at most 120 characters, broken behind commas and in front of bars. */
function wrapped(line) {
  const parts = []
  const indent = `${/^ */.exec(line)[0]}    `
  for (let rest = line; ; ) {
    const at =
      rest.length > 120
        ? Math.max(rest.lastIndexOf(', ', 118) + 1, rest.lastIndexOf(' | ', 118), rest.lastIndexOf(' & ', 118))
        : 0
    if (at <= indent.length) return [...parts, rest]
    parts.push(rest.slice(0, at))
    rest = indent + rest.slice(at + 1)
  }
}

/** The text of a declaration without comments and without what is hidden. */
function printed(statement) {
  const file = statement.getSourceFile()
  const cuts = []
  const collect = (node) => {
    if (isHidden(node)) {
      cuts.push([node.jsDoc?.[0]?.pos ?? node.getStart(), node.getEnd()])
      return
    }
    for (const comment of node === statement ? [] : (node.jsDoc ?? [])) cuts.push([comment.pos, comment.end])
    node.forEachChild((child) => {
      collect(child)
    })
  }
  collect(statement)
  const start = statement.getStart()
  let text = file.text.slice(start, statement.getEnd())
  for (const [from, to] of cuts.sort((a, b) => b[0] - a[0])) text = text.slice(0, from - start) + text.slice(to - start)
  return text
    .split('\n')
    .filter((line) => line.trim() !== '')
    .flatMap(wrapped)
    .join('\n')
    .trim()
}

/** Where a declaration or a member of it has no text for an editor to show. */
function undocumented({ name, statement, nodes }, textOf, textless) {
  const own = (node) => (node.jsDoc ?? []).some(({ comment }) => (ast.getTextOfJSDocComment(comment) ?? '').trim() !== '')
  const ofClass = ({ kind }) => kind === SyntaxKind.ClassDeclaration
  /** A member of a class also shows what its base class or interface says, and an accessor what the other one of its name says. */
  const inherited = ({ name, parent, kind }) =>
    (accessors.has(kind) &&
      parent.members.some((other) => accessors.has(other.kind) && other.name.getText() === name.getText() && own(other))) ||
    (parent.heritageClauses ?? []).some(({ types }) => types.some(({ expression }) => textOf(expression, name.getText())))
  const hasText = (node) => own(node) || (ofClass(node.parent) && inherited(node))
  const place = (node) => {
    const names = []
    for (let at = node; at !== statement; at = at.parent) if (members.has(at.kind)) names.unshift(at.name.getText())
    return [name, ...names].join('.')
  }
  const missing = nodes.filter((node) => (node === statement || members.has(node.kind)) && !hasText(node)).map(place)
  if (statement.kind === SyntaxKind.InterfaceDeclaration)
    missing.push(...textless(statement).map((member) => `${name}.${member}`))
  return [...new Set(missing)]
}

function report(declarations) {
  const part = (title, exported) => [
    `## ${title}`,
    '',
    '```ts',
    ...declarations.filter((one) => one.exported === exported).flatMap(({ statement }) => [printed(statement), '']),
    '```',
    '',
  ]
  return [
    '# The interface of looplm',
    '',
    '<!-- Made by `npm run api`; do not edit. -->',
    '',
    'Every declaration that a program can reach through the package. A change here is a change for users:',
    'it belongs in CHANGELOG.md.',
    '',
    ...part('Exports', true),
    ...part('Types without an export that they mention', false),
  ].join('\n')
}

const { values } = parseArgs({
  options: { check: { type: 'boolean' }, declarations: { type: 'string' }, report: { type: 'string' } },
})
const folder = resolve(values.declarations ?? join(root, 'dist', 'src'))
const path = resolve(values.report ?? join(root, 'api', 'looplm.api.md'))
const { declarations, textOf, textless, close } = readDeclarations(folder)
const text = report(declarations)
if (values.check) {
  const problems = declarations
    .flatMap((declaration) => undocumented(declaration, textOf, textless))
    .map((name) => `${name}: has no comment. Write what it is above it.`)
  const current = existsSync(path) ? readFileSync(path, 'utf8') : ''
  if (current !== text) problems.push(`${path}: is not the interface of this build. Run "npm run api" and look at what changed.`)
  for (const problem of problems) console.log(problem) // on stderr the compiler's own process may write as it ends
  if (problems.length > 0) process.exitCode = 1
} else {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, text)
}
close()
