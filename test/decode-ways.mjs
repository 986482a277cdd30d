// node test/decode-ways.mjs DEVICE DTYPE SWEEP: generates with small models and prints what came out, how it was computed, as JSON. The way is
// chosen by LOOPLM_CUDA_DECODE, which a process reads when it opens the device.
import { join } from 'node:path'
import { LoopLM } from '../dist/src/index.js'

const [device, dtype, sweep] = process.argv.slice(2)
const fixtures = join(import.meta.dirname, 'fixtures')
const shape = (hidden, heads, kvHeads, headDim, intermediate, layers = 2, loops = 3) => ({
  vocab_size: 40,
  hidden_size: hidden,
  num_attention_heads: heads,
  num_key_value_heads: kvHeads,
  head_dim: headDim,
  intermediate_size: intermediate,
  num_hidden_layers: layers,
  total_ut_steps: loops,
  initializer_range: 0.3,
})
const gate = { exit: { rule: 'gate', threshold: 0.6 } }
/** Models, and for each the requests that run together: how many, and their options; `again`: then the same with so many tokens, for which
 * cache and tables have to grow. */
const sweeps = {
  short: {
    models: ['base', 'gqa', shape(24, 3, 1, 10, 40), { ...shape(16, 2, 1, 8, 24), looplm_exit_gate: false }],
    requests: [
      [1, {}],
      [1, { ...gate, kv: 'shared' }],
      [2, gate],
      [5, { temperature: 0.8, seed: 5 }],
      [2, { again: 40 }],
    ],
  },
  long: {
    models: [
      ...['base', 'gqa', 'single', 'tied'],
      shape(64, 8, 1, 32, 136),
      shape(48, 4, 2, 64, 264, 3, 2),
      shape(136, 2, 1, 128, 48, 1, 4),
      shape(32, 3, 3, 96, 72),
      shape(24, 4, 2, 12, 40),
      shape(20, 4, 4, 5 * 2, 28),
    ],
    requests: [
      ...[1, 2, 5].flatMap((rows) =>
        ['per-loop', 'shared'].flatMap((kv) => [
          [rows, { kv }],
          [rows, { kv, ...gate }],
          [rows, { kv, exit: { rule: 'gate', threshold: 0.3, minLoops: 2 }, temperature: 0.7, seed: 2 }],
          [rows, { kv, exit: { rule: 'hidden-delta', threshold: 0.7 } }],
        ]),
      ),
      [1, { maxNewTokens: 80, loops: 1 }],
    ],
  },
}

const results = []
for (const from of sweeps[sweep].models) {
  const options = { device, dtype, seed: 7 }
  const model =
    typeof from === 'string' ? await LoopLM.fromPretrained(join(fixtures, from), options) : await LoopLM.create(from, options)
  const tokens = typeof from === 'string' ? (sweep === 'short' ? 9 : 12) : 6
  for (const [rows, { kv, again, ...rest }] of sweeps[sweep].requests) {
    if (again !== undefined && (from.looplm_exit_gate !== false || dtype !== 'float32')) continue
    if (sweep === 'short' && from === 'gqa' && rows > 1) continue
    if (from.looplm_exit_gate === false && rest.exit?.rule === 'gate') continue
    if (Math.max(rest.loops ?? 1, rest.exit?.minLoops ?? 1) > model.config.total_ut_steps) continue
    const scheduler = model.scheduler({ kv, maxRows: 4 })
    const run = async (most) => {
      const requests = Array.from({ length: rows }, (_, i) =>
        scheduler.add([1 + i, 2, 3, 4].slice(0, 2 + (i % 3)), { maxNewTokens: most - i, temperature: 0, stop: [], ...rest }),
      )
      return await Promise.all(requests.map((request) => request.result()))
    }
    const made = [...(await run(tokens)), ...(again === undefined ? [] : await run(again))]
    const { passes, replayedPasses, wholeTokens } = scheduler.stats()
    const lists = (field) => made.map((one) => Array.from(one[field]))
    results.push({
      from,
      rows,
      options: { kv, again, ...rest },
      made: { tokens: lists('tokens'), loops: lists('loops'), logprobs: lists('logprobs') },
      passes,
      replayedPasses,
      wholeTokens,
    })
    scheduler.dispose()
  }
  model.dispose()
}
console.log(JSON.stringify(results))
