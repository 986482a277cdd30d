// What a release must do in a project that has installed it, run in the folder of that project: node CHECKOUT/tools/smoke.mjs
// It imports and requires the package, trains, saves, loads, generates, and asks the command line.
import { deepStrictEqual, ok, strictEqual } from 'node:assert'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const require = createRequire(join(process.cwd(), 'project.js'))
const looplm = await import(pathToFileURL(require.resolve('looplm')).href)
strictEqual(require('looplm').LoopLM, looplm.LoopLM)

const config = {
  vocab_size: 12,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  total_ut_steps: 2,
}
const model = await looplm.LoopLM.create(config, { seed: 0 })
const losses = []
const task = looplm.addition({ digits: 1 })
for await (const { type, metrics } of new looplm.PretrainTrainer(model, {
  task,
  steps: 10,
  batchSize: 16,
  learningRate: 3e-3,
}).run())
  if (type === 'step') losses.push(metrics.loss)
strictEqual(losses.length, 10)
ok(losses.at(-1) < losses[0], `the loss does not fall: ${losses}`)

const folder = mkdtempSync(join(tmpdir(), 'looplm-smoke-'))
try {
  await model.save(join(folder, 'model'))
  const loaded = await looplm.LoopLM.fromPretrained(join(folder, 'model'))
  const generate = (one) => one.generate([[1, 2, 3]], { maxNewTokens: 8, temperature: 0 })
  deepStrictEqual(await generate(loaded), await generate(model))
} finally {
  rmSync(folder, { recursive: true })
}

const program = join(process.cwd(), 'node_modules', 'looplm', require('looplm/package.json').bin.looplm)
const { status, stdout, stderr } = spawnSync(process.execPath, [program, 'info', '--json'], { encoding: 'utf8' })
strictEqual(status, 0, stderr)
const { looplm: version, node, platform, devices } = JSON.parse(stdout)
strictEqual(version, require('looplm/package.json').version)
console.log(`looplm ${version} works: ${platform}, Node ${node ?? process.version}, ${devices[0].description ?? devices[0].name}`)
