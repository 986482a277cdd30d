// The declarations as a strict project and an editor read them: they type-check, every member has a text to show, and api/looplm.api.md
// lists them.
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '..')
mkdirSync(join(root, 'runs'), { recursive: true })
const folder = mkdtempSync(join(root, 'runs', 'types-')) // inside the checkout, where the compiler finds the types of node
afterAll(() => rmSync(folder, { recursive: true }))

const tsc = (...args: string[]) =>
  spawnSync(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), ...args], {
    cwd: folder,
    encoding: 'utf8',
  })

it('a strict program type-checks against the package with skipLibCheck false', () => {
  const program = `
    import { AdamW, createServer, type GenerateOptions, kernels, LoopLM, PretrainTrainer, RLTTTrainer, Tokenizer } from '../../dist/src/index.js'
    const options: GenerateOptions = { maxNewTokens: 4, exit: { rule: 'gate', threshold: 0.9 } }
    export async function run(folder: string): Promise<string> {
      using model = await LoopLM.fromPretrained(folder)
      using optimizer = new AdamW(model, { only: ['lm_head.weight'] })
      model.tokenizer = await Tokenizer.fromPretrained(folder)
      const [result] = await model.generate(['1+1='], options)
      // @ts-expect-error an option that there is not
      await model.generate([[1]], { maxTokens: 3 })
      using trainer = new RLTTTrainer(model, { groupSize: 2 })
      const rollouts = { sequences: [[1, 2], [1, 3]], promptLengths: [1, 1], rewards: [1, 0] }
      // @ts-expect-error a field of a batch that there is not
      await trainer.update({ ...rollouts, masks: [[1], [1]] })
      // @ts-expect-error a field of a batch that there is not
      await new PretrainTrainer(model).update({ sequences: [[1, 2]], labels: [[2]] })
      const { loss }: { loss: number } = await trainer.update({ ...rollouts, mask: [[1], [1]], columns: [{ id: 1 }, { id: 2 }] })
      return \`\${result?.text} \${loss} \${optimizer.steps} \${typeof kernels} \${RLTTTrainer.name} \${createServer.name}\`
    }`
  const compilerOptions = {
    target: 'es2023',
    lib: ['es2023', 'esnext.disposable'],
    module: 'nodenext',
    types: ['node'],
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    skipLibCheck: false,
    noEmit: true,
  }
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ type: 'module' }))
  writeFileSync(join(folder, 'program.ts'), program)
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['program.ts'] }))
  const { status, stdout } = tsc('-p', '.')
  expect(stdout).toBe('')
  expect(status).toBe(0)
})

describe('the interface of the package', () => {
  const check = (declarations: string, ...args: string[]) =>
    spawnSync(process.execPath, [join(root, 'tools', 'api.mjs'), '--check', '--declarations', declarations, ...args], {
      encoding: 'utf8',
    })

  it('has a comment for every declaration and member, and matches api/looplm.api.md', () => {
    const { status, stdout } = check(join(root, 'dist', 'src'))
    expect(stdout).toBe('')
    expect(status).toBe(0)
  })

  it('has a check that names declarations without a comment, also mapped and inherited ones', () => {
    const declarations = `
      /** Documented. */
      export interface Config {
        /** How many. */
        count: number
        depth: {
          /** Of it. */
          most: number
          least: number
        }
      }
      /** Its fields are those of the configuration. */
      export interface Options extends Open<Config> {}
      /** Every field may be absent. */
      type Open<T> = { [Key in keyof T]?: T[Key] | undefined }
      /** A class. */
      export declare class Base {
        /** Ends it. */
        dispose(): void
        /** @param x a number */
        run(x: number): void
        get size(): number
        /** Elements. */
        set size(value: number)
        private hidden: number
      }
      /** Another one. */
      export declare class Derived extends Base {
        dispose(): void
        /** @internal */
        inner(): void
        own: Indirect
      }
      type Indirect = 'a' | 'b'
      export declare function bare(options: {
        /** Text. */
        a: number
        b: number
      }): void`
    const small = join(folder, 'small')
    mkdirSync(small)
    writeFileSync(join(small, 'index.d.ts'), declarations)
    const { status, stdout } = check(small, '--report', join(small, 'report.md'))
    const named = [...stdout.matchAll(/^(\S+): has no comment/gm)].map(([, name]) => name)
    expect(named.sort()).toEqual(
      ['Base.run', 'Config.depth', 'Config.depth.least', 'Derived.own', 'Indirect', 'Options.depth', 'bare', 'bare.b'].sort(),
    )
    expect(stdout).toMatch(/report\.md: is not the interface of this build\. Run "npm run api"/)
    expect(status).toBe(1)
  })
})
