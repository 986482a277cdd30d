// Memory as the device, the container and the process have it: what it says, what waits for it, and what fails without it. Each claim on
// limits runs in a separate process under `ulimit`.
import { spawnSync } from 'node:child_process'
import { totalmem } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { deviceMemory, LoopLM, memory, resetPeakMemory } from '../../src/index.js'
import { heldBytes } from '../garbage.js'
import { refusal } from '../refusal.js'

const index = join(import.meta.dirname, '..', '..', 'dist', 'src', 'index.js')

/** What a script prints as JSON under a limit of `ulimit`, in KiB. */
function underLimit(limit: string, script: string): unknown {
  const code = `import { deviceMemory, LoopLM, memory } from ${JSON.stringify(index)}
    const failure = async (run) => { try { await run() } catch (error) { return [error.code, error.message] } }
    const config = ${JSON.stringify(config)}
    ${script}`
  const command = `ulimit ${limit} && exec "$0" --input-type=module --eval "$1"`
  const { stdout, stderr, status, signal } = spawnSync('bash', ['-c', command, process.execPath, code], { encoding: 'utf8' })
  expect({ status, signal }, stderr).toEqual({ status: 0, signal: null })
  return JSON.parse(stdout)
}

/** 16 KiB of keys and values a token. */
const config = {
  vocab_size: 20,
  hidden_size: 64,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  head_dim: 64,
  total_ut_steps: 4,
  max_position_embeddings: 2 ** 22,
}

describe('deviceMemory', () => {
  it('reports the memory of the host for CPU devices, with free at most total', () => {
    for (const device of [undefined, 'cpu', 'reference'] as const) {
      const { free, total } = deviceMemory(device)
      expect(free).toBeGreaterThan(0)
      expect(free).toBeLessThanOrEqual(total)
      expect(total).toBeLessThanOrEqual(totalmem())
    }
  })

  it('rejects an unknown or missing device', async () => {
    expect((await refusal(() => deviceMemory('tpu' as never))).code).toBe('INVALID_ARGUMENT')
    expect((await refusal(() => deviceMemory('cuda:99'))).code).toBe('UNSUPPORTED')
  })

  it.each(['-d', '-v'])('knows the limit of the process: ulimit %s', (flag) => {
    const { free, total } = underLimit(`${flag} 3000000`, 'console.log(JSON.stringify(deviceMemory()))') as Record<string, number>
    expect(total).toBe(3_000_000 * 1024)
    expect(free).toBeLessThan(total!)
  })
})

describe('a process with little memory', () => {
  it('runs prompts in turn if they do not fit together, with the same tokens', () => {
    const script = `
      const model = await LoopLM.create(config, { seed: 1, threads: 2 })
      const prompts = Array.from({ length: 24 }, (_, i) => [i % 20, 3])
      const every = Array.from({ length: 20 }, (_, i) => i)
      const tokens = async (batch, maxNewTokens) =>
        (await model.generate(batch, { maxNewTokens, stop: every, temperature: 0 })).map((result) => result.tokens)
      const together = await tokens(prompts, 8000) // 3 GiB of cache at once
      const few = await tokens(prompts, 2)
      console.log(JSON.stringify([together, few]))`
    const [together, few] = underLimit('-d 700000', script) as number[][][]
    expect(together).toHaveLength(24)
    expect(together).toEqual(few)
  })

  it('runs rows in waves if one pass does not fit, with the same tokens', () => {
    const script = `
      const wide = { ...config, hidden_size: 16, intermediate_size: 65_536, num_hidden_layers: 1, total_ut_steps: 2 }
      const model = await LoopLM.create(wide, { seed: 1, threads: 2 })
      const prompts = Array.from({ length: 1024 }, (_, i) => [i % 20]) // a pass of all of them would need 800 MB
      const options = { maxNewTokens: 2, stop: [], seed: 7 }
      const draws = (results) => results.map(({ tokens, logprobs }) => [tokens, [...logprobs]])
      const together = draws(await model.generate(prompts, options))
      const parts = []
      for (let first = 0; first < prompts.length; first += 64) {
        const sequenceNumbers = Array.from({ length: 64 }, (_, i) => first + i)
        parts.push(...draws(await model.generate(prompts.slice(first, first + 64), { ...options, sequenceNumbers })))
      }
      console.log(JSON.stringify([together.length, JSON.stringify(together) === JSON.stringify(parts)]))`
    expect(underLimit('-d 700000', script)).toEqual([1024, true])
  })

  it('rejects a request that can never fit, and fails one that does not fit now', () => {
    const script = `
      const model = await LoopLM.create(config, { seed: 1, threads: 2 })
      const greedy = { temperature: 0, stop: [] }
      const scheduler = model.scheduler({ maxRows: 2 ** 31 - 1 })
      const first = scheduler.add([1, 2], { ...greedy, maxNewTokens: 20 })
      const never = await failure(() => scheduler.add([3], { ...greedy, maxNewTokens: 2 ** 22 - 1 }))
      const large = scheduler.add([4], { ...greedy, maxNewTokens: 42_000 })
      const last = scheduler.add([5], { ...greedy, maxNewTokens: 20 })
      const now = failure(() => large.result())
      const results = [(await first.result()).tokens, (await last.result()).tokens]
      const alone = (await model.generate([[1, 2], [5]], { ...greedy, maxNewTokens: 20 })).map((result) => result.tokens)
      console.log(JSON.stringify([never, await now, results, alone]))`
    const [never, now, results, alone] = underLimit('-d 700000', script) as [string[], string[], number[][], number[][]]
    expect(never[0]).toBe('OUT_OF_MEMORY')
    expect(never[1]).toMatch(
      /Scheduler\.add: a prompt of 1 tokens and up to 4194303 new ones need \d{11} bytes of cache \(16384 a token\).*lower maxNewTokens/,
    )
    expect(now[0]).toBe('OUT_OF_MEMORY')
    expect(now[1]).toMatch(/up to 42000 new ones need 688128000 bytes.*device "cpu" has room for \d{5} tokens/)
    expect(results).toEqual(alone)
  })

  it('fails a step if one rollout does not fit, and names options that help', () => {
    const script = `
      const { RLTTTrainer, Tokenizer } = await import(${JSON.stringify(index)})
      const model = await LoopLM.create(config, { seed: 1, threads: 2 })
      const tokenizer = Tokenizer.characters('abcdefghijklmnopqrst')
      const dataset = [{ prompt: 'a' }]
      const options = { dataset, tokenizer, reward: () => 1, maxNewTokens: 42_000, stop: [], promptsPerStep: 1, groupSize: 2 }
      const trainer = new RLTTTrainer(model, options)
      console.log(JSON.stringify(await failure(() => trainer.run().next())))`
    const [code, message] = underLimit('-d 700000', script) as string[]
    expect(code).toBe('OUT_OF_MEMORY')
    expect(message).toMatch(
      /one rollout alone does not fit: .* 688128000 bytes of cache .*: lower maxNewTokens, maxEpisodeTokens or loops, .*fewer of them do not help$/,
    )
    expect(message).not.toMatch(/kv/)
  })

  it('names what helps after a failure, and the next call works as before', () => {
    const script = `
      const model = await LoopLM.create(config, { seed: 1, threads: 2 })
      const long = [Array.from({ length: 200_000 }, (_, i) => i % 20)]
      const short = [[1, 2, 3]]
      const fresh = await LoopLM.create(config, { seed: 1, threads: 1 })
      const expected = await fresh.score(short)
      const scored = await failure(() => model.score(long))
      const same = JSON.stringify(await model.score(short)) === JSON.stringify(expected)
      const coefficients = [new Float32Array(4 * 199_999)]
      const back = await failure(() => model.backward(long, coefficients))
      const again = await failure(() => model.backward(long, coefficients, { recompute: 'layer' }))
      console.log(JSON.stringify([scored, same, back, again]))`
    const [scored, same, back, again] = underLimit('-d 700000', script) as [string[], boolean, string[], string[]]
    expect(scored[1]).toMatch(/LoopLM\.score: \d+ bytes could not be allocated.*shorter sequences or fewer loops need less/)
    expect(scored[1]).not.toMatch(/recompute/)
    expect(same).toBe(true)
    expect(back[1]).toMatch(/LoopLM\.backward: .*use recompute 'layer'/)
    expect(again[1]).toMatch(/LoopLM\.backward: .*: use shorter sequences/)
    for (const [code] of [scored, back, again]) expect(code).toBe('OUT_OF_MEMORY')
  })

  it('fails with an error if no further thread can start', () => {
    const script = `
      const many = await failure(() => LoopLM.create(config, { threads: 1024 }))
      const model = await LoopLM.create(config, { threads: 2 })
      console.log(JSON.stringify([many, (await model.score([[1, 2]])).loops]))`
    const [many, loops] = underLimit('-v 4000000', script) as [string[], number]
    expect(many[1]).toMatch(/1024 threads: .*use fewer threads/)
    expect(loops).toBe(4)
  })
})

describe('a group of completions larger than a micro-batch', () => {
  const sizes = { ...config, max_position_embeddings: 512 }
  const prompt = Array.from({ length: 20 }, (_, i) => i)
  const batchOf = (group: number) => {
    const lengthNormalizers = new Array<number>(group).fill(1 / 40)
    return {
      sequences: Array.from({ length: group }, (_, i) => [...prompt, ...Array.from({ length: 40 }, (_, j) => (i + j) % 20)]),
      promptLengths: new Array<number>(group).fill(20),
      terms: [{ advantages: lengthNormalizers.map((_, i) => (i % 2) - 0.5), lengthNormalizers }],
      lengthNormalizers,
    }
  }
  const objective = (tokensPerMicroBatch: number) => ({ terms: [{}], tokensPerMicroBatch })

  it('is split, so its activations do not grow with the group', async () => {
    const peak = async (group: number) => {
      using model = await LoopLM.create(sizes, { seed: 2 })
      await model.accumulateLoss(batchOf(1), objective(160)) // takes the memory of gradients
      const before = await heldBytes()
      resetPeakMemory()
      await model.accumulateLoss(batchOf(group), objective(160))
      return memory().peak - before
    }
    const [four, forty] = [await peak(4), await peak(40)]
    expect(four).toBeGreaterThan(0)
    expect(forty).toBeLessThan(1.1 * four) // only tables of integers grow
  })

  it('has the gradient of the whole group', async () => {
    const gradients = async (tokensPerMicroBatch: number) => {
      using model = await LoopLM.create(sizes, { seed: 2, device: 'reference' })
      const { loss } = await model.accumulateLoss(batchOf(6), objective(tokensPerMicroBatch))
      return { loss, gradients: await model.gradients() }
    }
    const [whole, cut] = [await gradients(10_000), await gradients(90)]
    // Sums of at most 6 × 60 tokens × 4 loops in another order, through a backward of a few hundred more roundings.
    const share = 6 * 60 * 4 * 300 * Number.EPSILON
    expect(Math.abs(cut.loss - whole.loss)).toBeLessThanOrEqual(share * Math.abs(whole.loss))
    for (const [name, values] of whole.gradients) {
      const other = cut.gradients.get(name)!
      let [largest, farthest] = [0, 0]
      for (const [i, x] of values.entries()) {
        largest = Math.max(largest, Math.abs(x))
        farthest = Math.max(farthest, Math.abs(x - other[i]!)) // NaN stays
      }
      expect(farthest, name).toBeLessThanOrEqual(share * largest)
    }
  })
})
