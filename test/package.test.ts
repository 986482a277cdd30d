// What a user gets: the tarball of `npm pack`, installed by npm without scripts and without a network into an empty project.
import { spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { publint } from 'publint'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadRemedies } from '../src/native.js'

const checkout = join(import.meta.dirname, '..')
const manifest = JSON.parse(readFileSync(join(checkout, 'package.json'), 'utf8'))
const root = realpathSync(mkdtempSync(join(tmpdir(), 'looplm-package-')))
const project = join(root, 'project')
const installed = join(project, 'node_modules', 'looplm')
const command = join(project, 'node_modules', '.bin', 'looplm')
const prebuilds = `prebuilds/${process.platform}-${process.arch}`
let tarball: string
afterAll(() => rmSync(root, { recursive: true }))

/**
 * What a user's machine need not have: every library that an engine of this kind might find on a system, and everything that compiles. Empty
 * files lie over them, in a mount namespace of each program that runs in the project, the installation included.
 */
const hidden = [
  ...['/lib', '/usr/lib', '/usr/local/lib', '/lib64', '/usr/lib64']
    .flatMap((folder) => [folder, join(folder, `${{ x64: 'x86_64', arm64: 'aarch64' }[process.arch as 'x64']}-linux-gnu`)])
    .flatMap((folder) => (existsSync(folder) ? readdirSync(folder).map((name) => join(folder, name)) : []))
    .filter((path) => /\/lib(dnnl|gomp|iomp|OpenCL|openblas|blas|cblas|tbb|cudart|cublas)[^/]*\.so[.\d]*$/.test(path)),
  ...['cc', 'c++', 'gcc', 'g++', 'clang', 'clang++', 'cmake', 'make', 'ninja', 'as', 'ld', 'nvcc', 'python3']
    .flatMap((name) => (process.env.PATH ?? '').split(':').map((folder) => join(folder, name)))
    .filter(existsSync),
].map((path) => realpathSync(path))
const empty = join(root, 'empty')
writeFileSync(empty, '')
const cover = 'empty=$1; shift; while [ "$1" != -- ]; do mount --bind "$empty" "$1" || exit 99; shift; done; shift; exec "$@"'
const namespace = process.getuid?.() === 0 ? ['-m'] : ['-r', '-m']
const hiding = ['unshare', ...namespace, 'sh', '-c', cover, 'sh', empty, ...new Set(hidden), '--']
const canHide = process.platform === 'linux' && spawnSync(hiding[0]!, [...hiding.slice(1), 'true']).status === 0
if (!canHide)
  console.log(
    'package: compilers and libraries stay visible, they cannot be hidden here (needs Linux, and root or user namespaces)',
  )

interface Outcome {
  status: number | null
  stdout: string
  stderr: string
}

/** Runs a program in the project, as a user who has none of this checkout's settings, and outside the checkout nothing that is hidden. */
function run(program: string, args: string[], extra: Record<string, string> = {}, cwd = project): Outcome {
  const own = Object.entries(process.env).filter(([name]) => !/^(npm_|VITEST|NODE_ENV|NODE_OPTIONS|NODE_PATH|LOOPLM_)/.test(name))
  const env = {
    ...Object.fromEntries(own),
    npm_config_cache: join(root, 'npm-cache'),
    npm_config_update_notifier: 'false',
    ...extra,
  }
  const [first, ...rest] = canHide && cwd !== checkout ? [...hiding, program, ...args] : [program, ...args]
  return spawnSync(first!, rest, { cwd, env, encoding: 'utf8' })
}

function succeed(program: string, args: string[], extra?: Record<string, string>, cwd?: string): string {
  const { status, stdout, stderr } = run(program, args, extra, cwd)
  if (status !== 0) throw new Error(`${program} ${args.join(' ')} ended with ${status}\n${stdout}${stderr}`)
  return stdout
}

const node = (code: string, type: 'module' | 'commonjs', env?: Record<string, string>) =>
  succeed(process.execPath, [`--input-type=${type}`, '-e', code], env)

beforeAll(() => {
  mkdirSync(project)
  writeFileSync(join(project, 'package.json'), '{"private":true}')
  succeed('npm', ['pack', '--pack-destination', root], {}, checkout)
  tarball = join(root, `looplm-${manifest.version}.tgz`)
  // The dependencies are copies of the checkout's, linked: nothing is asked of a network or a cache.
  const copies = new Map<string, string>()
  const collect = (names: readonly string[]) => {
    for (const name of names) {
      if (copies.has(name)) continue
      const copy = join(project, 'dependencies', name.replace('/', '+'))
      copies.set(name, copy)
      cpSync(join(checkout, 'node_modules', name), copy, { recursive: true })
      const { devDependencies: _, ...rest } = JSON.parse(readFileSync(join(copy, 'package.json'), 'utf8'))
      writeFileSync(join(copy, 'package.json'), JSON.stringify(rest)) // npm would install these of a linked package
      collect(Object.keys(rest.dependencies ?? {}))
    }
  }
  collect(Object.keys(manifest.dependencies))
  succeed('npm', ['install', '--offline', '--ignore-scripts', '--no-audit', '--no-fund', tarball, ...copies.values()])
}) // prepack may have to compile

describe('the tarball', () => {
  const below = (folder: string) =>
    readdirSync(join(checkout, folder), { recursive: true, encoding: 'utf8', withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(checkout.length + 1))

  it('holds only src, its compiled files, the prebuilt addon and the documents', () => {
    const sources = below('src').filter((name) => /\.[jt]s$/.test(name))
    const compiled = sources.flatMap((name) =>
      ['.js', '.d.ts', '.d.ts.map'].map((end) => `dist/${name.replace(/\.[jt]s$/, end)}`),
    )
    const files = succeed('tar', ['-tzf', tarball]).trimEnd().split('\n')
    const documents = readdirSync(join(checkout, 'docs'))
      .filter((name) => /\.(md|svg)$/.test(name))
      .map((name) => `docs/${name}`)
      .filter((name) => !manifest.files.includes(`!${name}`))
    const expected = [
      ...['package.json', 'README.md', 'CHANGELOG.md', 'LICENSE', 'examples/addition.yaml'],
      ...[...documents, ...sources, ...compiled, ...below('prebuilds')],
    ]
    expect(files.map((name) => name.replace(/^package\//, '')).sort()).toEqual(expected.sort())
    const libraries = ['looplm_cuda.so', 'looplm_openmpi.so', 'looplm_mpich.so']
    const built = libraries.filter((name) => existsSync(join(checkout, 'build', 'Release', name)))
    const own = ['looplm.node', ...built].map((name) => `${prebuilds}/${name}`)
    expect(
      below(prebuilds)
        .map((name) => name.replace(/\.(glibc|musl)/, ''))
        .sort(),
    ).toEqual(own.sort())
  })

  it('has the source of every declaration map', () => {
    const maps = readdirSync(join(installed, 'dist'), { recursive: true, encoding: 'utf8' }).filter((name) =>
      name.endsWith('.map'),
    )
    expect(maps.length).toBeGreaterThan(200)
    const lost = maps.filter((name) => {
      const path = join(installed, 'dist', name)
      const { sources } = JSON.parse(readFileSync(path, 'utf8')) as { sources: string[] }
      return sources.length === 0 || !sources.every((source) => existsSync(join(path, '..', source)))
    })
    expect(lost).toEqual([])
  })

  it('requires Node versions that can require() an ES module, as README says', () => {
    const ranges = (manifest.engines.node as string).split(' || ')
    expect(ranges).toEqual(['^20.19.0', '>=22.12.0']) // where require of an ES module needs no flag: nodejs.org, Modules: CommonJS
    for (const range of ranges)
      expect(readFileSync(join(checkout, 'README.md'), 'utf8')).toContain(range.replace(/^\D+|\.0$/g, ''))
  })

  it('is below 50 MB and runs no script when it is installed', () => {
    expect(statSync(tarball).size).toBeLessThan(50e6)
    const scripts = Object.keys(JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')).scripts)
    expect(scripts.filter((name) => /install|^prepare$/.test(name))).toEqual([])
    expect(readdirSync(installed)).not.toContain('binding.gyp') // npm would run node-gyp on it
  })
})

it('a release names its repository, and links to files that are not in the package absolutely', () => {
  const folder = join(root, 'released')
  mkdirSync(folder)
  for (const name of ['README.md', 'CHANGELOG.md', 'package.json', 'docs']) {
    const inside = (path: string) => !path.includes('node_modules')
    cpSync(join(checkout, name), join(folder, name), { recursive: true, filter: inside })
  }
  const tool = join(checkout, 'tools', 'link-repository.mjs')
  const address = 'https://example.com/owner/name'
  succeed(process.execPath, [tool, address, 'v1.2.3', folder])
  const { repository, bugs, homepage, ...rest } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  expect(repository).toEqual({ type: 'git', url: `git+${address}.git` })
  expect([bugs, homepage]).toEqual([`${address}/issues`, `${address}#readme`])
  expect(rest).toEqual(manifest)
  const before = readFileSync(join(checkout, 'README.md'), 'utf8')
  const after = readFileSync(join(folder, 'README.md'), 'utf8')
  const targets = [...after.matchAll(/\]\(([^)]*)\)/g)].map(([, target]) => target!)
  expect(targets.length).toBeGreaterThan(30)
  for (const target of targets) {
    expect(target).toMatch(/^https:/)
    const path = /^https:\/\/example.com\/owner\/name\/(?:blob|raw)\/v1.2.3\/([^#]*)/.exec(target)?.[1]
    if (path !== undefined) expect(existsSync(join(checkout, path)), path).toBe(true)
  }
  expect(after).toContain(`](${address}/raw/v1.2.3/docs/demo.svg)`)
  const code = (text: string) => text.match(/^```[\s\S]*?^```/gm)
  expect(code(after)).toEqual(code(before))

  let elsewhere = 0
  const pages = readdirSync(join(installed, 'docs')).map((name) => `docs/${name}`)
  for (const page of ['CHANGELOG.md', ...pages].filter((name) => name.endsWith('.md'))) {
    const linked = readFileSync(join(folder, page), 'utf8')
    for (const [, target] of linked.matchAll(/\]\((?![a-z]+:\/\/(?!example\.com)|#)([^)#\s]+)/g)) {
      const path = /^https:\/\/example.com\/owner\/name\/(?:blob|raw)\/v1.2.3\/(.*)/.exec(target!)?.[1]
      const packed = existsSync(join(installed, path ?? join(dirname(page), target!)))
      expect([page, target, packed]).toEqual([page, target, path === undefined])
      if (path === undefined) continue
      expect(existsSync(join(checkout, path)), path).toBe(true)
      elsewhere++
    }
  }
  expect(elsewhere).toBeGreaterThan(10)
  expect(run(process.execPath, [tool, 'owner/name', 'v1.2.3', folder])).toMatchObject({ status: 2 })
})

it('npm run prebuild is told apart from the pre-script of npm run build', () => {
  const folder = join(root, 'hook')
  mkdirSync(folder)
  const script = `node --input-type=module -e "import { runsAsHook } from '${join(checkout, 'tools', 'npm-hook.mjs')}'; console.log(runsAsHook())"`
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ scripts: { prebuild: script, build: 'node -e 0' } }))
  expect(succeed('npm', ['--silent', 'run', 'build'], {}, folder)).toBe('true\n')
  expect(succeed('npm', ['--silent', 'run', 'prebuild'], {}, folder)).toBe('false\n')
  expect(succeed('npm', ['run', 'prebuild', '--silent'], {}, folder)).toBe('false\n')
})

describe('npm run prebuild', () => {
  it('compares glibc versions as numbers, and README names the oldest supported one', async () => {
    const { isNewer, oldestGlibc } = await import(join(checkout, 'tools', 'glibc.mjs'))
    const sorted = ['2.2.5', '2.3.4', '2.4', '2.17', '2.34', '2.35']
    for (const [i, a] of sorted.entries()) for (const [j, b] of sorted.entries()) expect(isNewer(a, b)).toBe(i > j)
    expect(readFileSync(join(checkout, 'README.md'), 'utf8')).toContain(`glibc ${oldestGlibc} or newer`)
  })

  it.skipIf(process.platform !== 'linux')(
    'rejects an addon that needs a newer glibc, and leaves no files',
    () => {
      const bin = join(root, 'bin')
      mkdirSync(bin)
      writeFileSync(
        join(bin, 'readelf'),
        '#!/bin/sh\n[ "$1" != -V ] || echo "  0x0010:   Name: GLIBC_2.99  Flags: none  Version: 2"\n',
        {
          mode: 0o755,
        },
      )
      const before = readdirSync(join(checkout, prebuilds))
      const tool = join(checkout, 'tools', 'prebuild.mjs')
      const { status, stderr } = run(
        process.execPath,
        [tool, '--this-processor'],
        { PATH: `${bin}:${process.env.PATH}` },
        checkout,
      )
      expect(stderr).toMatch('the addon needs glibc 2.99, and a release runs with 2.35: build it on an older system')
      expect(status).toBe(1)
      expect(readdirSync(join(checkout, prebuilds))).toEqual(before)
    },
    120_000,
  )
})

describe('the remedy for an engine that does not load:', () => {
  it.each([
    [
      "/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.35' not found (required by looplm.node)",
      /needs glibc 2\.35 or newer, and this system has glibc 2\.31/,
    ],
    ['libgomp.so.1: cannot open shared object file: No such file or directory', /libgomp\.so\.1 is missing: install the package/],
    ['No native build was found for platform=linux arch=riscv64', /no prebuilt engine for this platform with glibc 2\.31/],
    ['looplm.node: invalid ELF header', /damaged or for another processor/],
    ['something else', /does not fit this system/],
  ])('%s', (reason, remedy) => {
    expect(loadRemedies(reason, 'glibc 2.31').join()).toMatch(remedy)
  })
})

describe('the installed package', () => {
  it('passes publint', async () => {
    const { messages } = await publint({ pkgDir: installed, pack: false, strict: true })
    expect(messages).toEqual([])
  })

  it('has types that attw finds in every module resolution', () => {
    const attw = join(checkout, 'node_modules', '.bin', 'attw')
    const { stdout } = run(attw, [tarball, '--profile', 'node16', '--format', 'json'], {}, checkout)
    const { analysis } = JSON.parse(stdout)
    const problems = (analysis.problems as { kind: string; resolutionKind: string }[]).map((one) => [
      one.kind,
      one.resolutionKind,
    ])
    // The package is ESM alone. That is no problem of require: the next two tests do it, in JavaScript and in TypeScript.
    expect(problems).toEqual([['CJSResolvesToESM', 'node16-cjs']])
  })

  it('can be imported and required in TypeScript', () => {
    const use = `const made: Promise<looplm.LoopLM> = looplm.LoopLM.create({ vocab_size: 4, hidden_size: 8, intermediate_size: 8,
      num_hidden_layers: 1, num_attention_heads: 1 })
    // @ts-expect-error a number is no configuration
    looplm.LoopLM.create(1)
    export { made }\n`
    writeFileSync(join(project, 'imported.mts'), `import * as looplm from 'looplm'\n${use}`)
    writeFileSync(join(project, 'required.cts'), `import looplm = require('looplm')\n${use}`)
    const tsc = join(checkout, 'node_modules', '.bin', 'tsc')
    const options = ['--noEmit', '--strict', '--target', 'es2023', '--lib', 'es2023,esnext.disposable', '--module', 'nodenext']
    const types = ['--typeRoots', join(checkout, 'node_modules', '@types'), '--types', 'node']
    const { stdout, status } = run(tsc, [...options, ...types, 'imported.mts', 'required.cts'])
    expect(stdout).toBe('')
    expect(status).toBe(0)
  })

  it('passes the smoke test of releases', () => {
    const said = succeed(process.execPath, [join(checkout, 'tools', 'smoke.mjs')])
    expect(said).toMatch(`looplm ${manifest.version} works: ${process.platform}-${process.arch}, Node ${process.version}`)
  })

  it('gives the same module by import and by require, loads its own addon and no other library', () => {
    const names = 'Object.keys(looplm).sort(), typeof looplm.LoopLM.create, looplm.devices()[0].name'
    const imported = node(
      `process.report.excludeNetwork = true
      const libraries = () => process.report.getReport().sharedObjects
      const before = new Set(libraries())
      const looplm = await import('looplm')
      await looplm.LoopLM.create({ vocab_size: 4, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1 })
      console.log(JSON.stringify([libraries().filter((path) => !before.has(path)), ${names}]))`,
      'module',
    )
    const [loaded, ...same] = JSON.parse(imported) as [string[], ...unknown[]]
    const required = JSON.parse(node(`const looplm = require('looplm'); console.log(JSON.stringify([${names}]))`, 'commonjs'))
    expect(same.slice(1)).toEqual(['function', 'cpu'])
    expect(required).toEqual(same)
    const libc = /\/(lib(c|m|pthread|dl|rt)\.so\.\d|ld-)[^/]*$/
    const added = loaded.filter((path) => !libc.test(path))
    expect(added).toEqual([join(installed, prebuilds, readdirSync(join(installed, prebuilds))[0]!)])
  })

  const examples = readFileSync(join(checkout, 'README.md'), 'utf8').matchAll(/^```ts\n([\s\S]*?)^```/gm)
  const block = [...examples].map((match) => match[1]!).find((text) => text.includes('new PretrainTrainer'))!
  const shorter = block.replace(/\bsteps: \d+/g, 'steps: 2').replace(/problems: \d+/g, 'problems: 8')

  function expectTrained(stdout: string): void {
    const said = stdout.split('\n')
    expect(Number(/^loss (.*)$/.exec(said[0]!)![1])).toBeGreaterThan(0)
    expect(said.filter((line) => / loops: /.test(line))).toHaveLength(4)
    const model = join(project, 'my-model')
    expect(readdirSync(model)).toEqual(expect.arrayContaining(['config.json', 'model.safetensors']))
    rmSync(model, { recursive: true })
  }

  it.skipIf(!canHide)(
    "trains README's example without a compiler and a library of the system but glibc: each comes with Node or the package",
    () => {
      for (const path of hidden) expect(succeed('stat', ['-c', '%s', path])).toBe('0\n')
      for (const compiler of ['cc', 'g++', 'clang', 'cmake'])
        expect(run('sh', ['-c', `${compiler} --version`]).status).not.toBe(0)
      const loaded = (code: string) => {
        const { status, stdout, stderr } = run(process.execPath, ['--input-type=module', '-e', code], { LD_DEBUG: 'libs' })
        expect(status, stderr).toBe(0)
        return { stdout, libraries: [...stderr.matchAll(/calling init: (\S+)/g)].map(([, path]) => path!) }
      }
      const own = new Set(loaded('').libraries)
      const { stdout, libraries } = loaded(shorter)
      expectTrained(stdout)
      const added = libraries.filter((path) => !own.has(path) && !/\/(lib(c|m|pthread|dl|rt)\.so\.\d|ld-)[^/]*$/.test(path))
      expect(added.length).toBeGreaterThan(0)
      for (const path of added) expect(path).toContain(`${installed}/${prebuilds}/`)
    },
  )

  it('answers looplm --version and looplm info --json', () => {
    expect(succeed(command, ['--version']).trim()).toBe(manifest.version)
    const facts = JSON.parse(succeed('npx', ['--offline', 'looplm', 'info', '--json']))
    expect(facts).toMatchObject({ looplm: manifest.version, platform: `${process.platform}-${process.arch}` })
    expect(facts.devices[0]).toMatchObject({ name: 'cpu', available: true })
  })

  it('cannot download without @huggingface/hub, and says how to install it', () => {
    const said = node(
      `const { download } = await import('looplm')
      await download('org/name').catch(({ code, message }) => console.log(code, message))`,
      'module',
    )
    expect(said).toBe('UNSUPPORTED download: needs the package @huggingface/hub; run npm install @huggingface/hub\n')
  })

  // The best instruction set has trained where loaded libraries were watched.
  it.each([...(canHide ? [] : ['the best']), 'avx2', 'baseline'])("trains README's example with %s instruction set", (isa) => {
    const env: Record<string, string> = isa === 'the best' ? {} : { LOOPLM_CPU_ISA: isa }
    const used = `console.log((await import('looplm')).devices()[0].description)`
    const said = node(`${shorter}\n${used}`, 'module', env)
    if (isa !== 'the best' && process.arch === 'x64') expect(said.trimEnd().split('\n').at(-1)).toMatch(isa)
    expectTrained(said)
  })

  it('says why the engine cannot be loaded and what helps', () => {
    const addon = join(installed, prebuilds)
    const kept = join(root, 'kept')
    renameSync(addon, kept)
    mkdirSync(addon)
    for (const name of readdirSync(kept)) writeFileSync(join(addon, name), 'not a library')
    const unreadable = run(command, ['info'])
    rmSync(addon, { recursive: true })
    const missing = run(command, ['info'])
    renameSync(kept, addon)
    for (const { status, stderr } of [unreadable, missing]) {
      expect(status).toBe(1)
      expect(stderr).toMatch(`could not be loaded for ${process.platform}-${process.arch}, Node ${process.version}`)
      expect(stderr).not.toMatch(/^\s+at /m)
    }
    expect(unreadable.stderr).toMatch('is damaged or for another processor: install the package again')
    expect(missing.stderr).toMatch('has no prebuilt engine for this platform')
  })
})
