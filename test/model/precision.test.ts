// bfloat16 end to end: its error against float64 is at most twice that of a plain evaluation that rounds after every operation.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { LoopLM, RLTTTrainer } from '../../src/index.js'
import { readGolden, relativeError } from '../golden-files.js'

const root = join(import.meta.dirname, '..', 'fixtures')
const plain = JSON.parse(readFileSync(join(root, 'plain-bfloat16.json'), 'utf8')) as Record<
  string,
  { logprobs: number; gradient: number }
>
const scratch = mkdtempSync(join(tmpdir(), 'looplm-precision-'))
afterAll(() => rmSync(scratch, { recursive: true }))

const joined = (arrays: Iterable<ArrayLike<number>>): number[] => [...arrays].flatMap((a) => Array.from(a))

describe.each(Object.keys(plain))('bfloat16 on fixture %s', (name) => {
  const gold = readGolden(join(root, name))
  const ids = gold.get('ids')!
  const [B, S] = ids.shape as [number, number]
  const sequences = Array.from({ length: B }, (_, b) => Array.from(ids.data.subarray(b * S, (b + 1) * S)))

  /** The same rounded parameters on the float64 reference. */
  async function pair(): Promise<{ half: LoopLM; truth: LoopLM }> {
    const half = await LoopLM.fromPretrained(join(root, name), { dtype: 'bfloat16' })
    const folder = join(scratch, name)
    if (!readdirSync(scratch).includes(name)) await half.save(folder)
    return { half, truth: await LoopLM.fromPretrained(folder, { device: 'reference' }) }
  }

  it('scores within twice the error of a plain evaluation', async () => {
    const { half, truth } = await pair()
    const got = joined((await half.score(sequences)).logprobs)
    const want = joined((await truth.score(sequences)).logprobs)
    expect(relativeError(got, want)).toBeLessThan(2 * plain[name]!.logprobs)
    expect(relativeError(got, want)).toBeGreaterThan(0) // it did run in bfloat16
  })

  it('has gradients within twice the error of a plain evaluation', async () => {
    const { half, truth } = await pair()
    const mask = gold.get('mask')!.data
    const lengths = sequences.map((_, b) => 1 + mask.subarray(b * (S - 1), (b + 1) * (S - 1)).lastIndexOf(1) + 1)
    const batch = {
      sequences: sequences.map((s, b) => s.slice(0, lengths[b])),
      promptLengths: Array.from(gold.get('prompt_lengths')!.data),
      advantages: Array.from(gold.get('advantages')!.data),
    }
    const gradient = async (model: LoopLM) =>
      joined((await new RLTTTrainer(model, { weights: 'uniform' }).gradients(batch)).gradients.values())
    expect(relativeError(await gradient(half), await gradient(truth))).toBeLessThan(2 * plain[name]!.gradient)
  })
})
