// What bundlers and Node's permission model make of the built package: it works, or one error says what to do.
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build as esbuild } from 'esbuild'
import { build as vite } from 'vite'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const checkout = join(import.meta.dirname, '..')
let project: string

beforeAll(() => {
  project = mkdtempSync(join(tmpdir(), 'looplm-bundle-'))
  writeFileSync(join(project, 'package.json'), '{ "name": "app", "type": "module" }')
  mkdirSync(join(project, 'node_modules'))
  symlinkSync(checkout, join(project, 'node_modules', 'looplm'))
  writeFileSync(
    join(project, 'app.js'),
    `import { tensor } from 'looplm'
     const run = async () => console.log('values', ...(await tensor([1, 2]).toArray()))
     run().catch(({ code, message }) => console.log(code, message))`,
  )
})
afterAll(() => rmSync(project, { recursive: true }))

const node = (...args: string[]) => spawnSync(process.execPath, args, { cwd: project, encoding: 'utf8' })

type Bundler = (outfile: string, external: string[]) => Promise<unknown>
const withEsbuild =
  (format: 'esm' | 'cjs'): Bundler =>
  (outfile, external) =>
    esbuild({
      absWorkingDir: project,
      entryPoints: ['app.js'],
      bundle: true,
      platform: 'node',
      format,
      outfile,
      external,
      logLevel: 'silent',
    })
const withVite: Bundler = (outfile, external) =>
  vite({
    root: project,
    configFile: false,
    logLevel: 'silent',
    ssr: { noExternal: true, external },
    build: { ssr: 'app.js', outDir: join(outfile, '..'), rollupOptions: { output: { entryFileNames: 'out.mjs' } } },
  })

describe.each<[string, string, Bundler]>([
  ['esbuild, ES modules', 'esm/out.mjs', withEsbuild('esm')],
  ['esbuild, CommonJS', 'cjs/out.cjs', withEsbuild('cjs')],
  ['Vite', 'vite/out.mjs', withVite],
])('%s', (_, outfile, bundle) => {
  it('explains how to mark looplm as external when it was inlined', async () => {
    await bundle(join(project, outfile), [])
    const { status, stderr } = node(outfile)
    expect(status).toBe(1)
    expect(stderr).toMatch(/LoopLMError: looplm: looplm was bundled.*Mark looplm as external:/)
    for (const remedy of [
      'esbuild: --external:looplm',
      "Vite: ssr: { external: ['looplm'] }",
      'webpack: externals: ',
      'Next.js: ',
    ]) {
      expect(stderr).toContain(remedy)
    }
  })

  it('runs with looplm external', async () => {
    await bundle(join(project, outfile), ['looplm'])
    const { stdout, stderr } = node(outfile)
    expect({ stdout, stderr: stderr.replace(/^\(.*\n/gm, '') }).toEqual({ stdout: 'values 1 2\n', stderr: '' })
  })
})

describe("Node's permission model", () => {
  const flag = process.allowedNodeEnvironmentFlags.has('--permission') ? '--permission' : '--experimental-permission'

  it('is named in the error when it blocks the addon', () => {
    expect(node(flag, '--allow-fs-read=*', 'app.js').stdout).toMatch(/^NATIVE_LOAD .*\n.*permission model.*--allow-addons/)
  })

  it('is named in the error when it blocks reading the engine folder', () => {
    const folders = [project, ...['dist', 'node_modules'].map((name) => join(checkout, name))].map((name) => join(name, '*'))
    const readable = [...folders, join(checkout, 'package.json')].map((path) => `--allow-fs-read=${path}`)
    const { stdout } = node(flag, '--allow-addons', ...readable, 'app.js')
    expect(stdout).toMatch(/^NATIVE_LOAD .*\n.*permission model/)
    expect(stdout).toContain(`--allow-fs-read=${join(checkout, '*')}`)
  })

  it('lets the engine load when addons and file reads are allowed', () => {
    expect(node(flag, '--allow-addons', '--allow-fs-read=*', 'app.js').stdout).toBe('values 1 2\n')
  })

  it('is not mentioned when --no-addons is the cause', () => {
    const { stdout } = node('--no-addons', 'app.js')
    expect(stdout).toMatch(/^NATIVE_LOAD .*\n.*--no-addons: remove it/)
    expect(stdout).not.toMatch('permission')
  })
})
