// One rank of a test: node test/parallel-rank.mjs SCENARIO…. What it finds is a file of LOOPLM_RANK_FOLDER.
import { createHash } from 'node:crypto'
import { writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parallel } from '../dist/src/parallel.js'

// Loading everything takes half a second: a scenario loads what it needs.
const engine = async () => ({
  ...(await import('../dist/src/model/model.js')),
  ...(await import('../dist/src/model/optimizer.js')),
})
const everything = () => import('../dist/src/index.js')

const device = process.env.LOOPLM_RANK_DEVICE ?? 'cpu'
const emulated = device !== 'cpu' // it takes a second for what the CPU does in milliseconds
const config = {
  vocab_size: emulated ? 100 : 300,
  hidden_size: emulated ? 32 : 64,
  intermediate_size: 96,
  num_hidden_layers: emulated ? 1 : 2,
  num_attention_heads: 4,
  total_ut_steps: 2,
}
const told = {}
// What a rank says lies in its own file: launchers mix long lines of several ranks.
const say = (value) =>
  typeof value === 'string'
    ? writeSync(1, `${value}\n`)
    : writeFileSync(join(process.env.LOOPLM_RANK_FOLDER, `${value.rank}.json`), JSON.stringify(Object.assign(told, value)))

/** What carried the gradients. */
let over
/** Trains on the share of the sequences that belongs to this rank; a checksum of the parameters at the end. */
async function train(world, { dtype = 'float32', adapter = false, overlap = false } = {}) {
  const { AdamW, LoopLM } = await engine()
  const model = await LoopLM.create(config, { seed: 1, dtype, threads: 1, device })
  if (adapter) await model.addAdapter({ rank: 4, seed: 2 })
  const optimizer = new AdamW(model, { learningRate: 1e-2, weightDecay: 0.1, world })
  const norms = []
  const [steps, sequences] = emulated ? [2, 4] : [4, 6]
  for (let step = 0; step < steps; step++) {
    for (let i = world.rank; i < sequences; i += world.size) {
      if (overlap && i + world.size >= sequences) await optimizer.exchangeDuringNext()
      const tokens = Array.from({ length: 9 }, (_, j) => (17 * i + 5 * step + j * j) % config.vocab_size)
      await model.backward([tokens], [new Float64Array(8 * 2).fill(-1 / 96)])
    }
    norms.push((await optimizer.step()).gradNorm)
  }
  const hash = createHash('sha256')
  const values = []
  for (const { name } of adapter ? model.adapter.parameters : model.parameters()) {
    const one = await model.getParameter(name)
    hash.update(one)
    values.push(one[0], one[one.length - 1])
  }
  over = optimizer.exchanged.over
  return { hash: hash.digest('hex'), values, norms }
}

const scenarios = {
  async place() {
    const { rank, size, localRank, backend, library } = await parallel.init({ timeout: 60 })
    say({ rank, place: { size, localRank, backend, library } })
  },
  async operations() {
    const world = await parallel.init({ timeout: 60 })
    const again = await parallel.init({ timeout: 60 })
    const sum = await world.sum([world.rank === 0 ? 1e17 : world.rank === 2 ? -1e17 : 1, 1])
    const max = await world.max([world.rank, -world.rank])
    const gathered = await world.gather({ rank: world.rank, text: 'ä'.repeat(world.rank) })
    const told = await world.broadcast({ from: world.rank }, world.size - 1)
    const parts = Array.from({ length: world.size }, (_, q) => Uint8Array.of(...Array(q).fill(10 * world.rank + q)))
    const exchanged = (await world.exchange(parts)).map((part) => Array.from(part))
    await world.barrier()
    say({ rank: world.rank, operations: { same: again === world, sum, max, gathered, told, exchanged } })
  },
  async train() {
    const world = await parallel.init({ timeout: 60 })
    const trained = {}
    const only = process.env.LOOPLM_RANK_KINDS
    for (const [name, options] of Object.entries({
      float32: {},
      bfloat16: { dtype: 'bfloat16' },
      adapter: { adapter: true },
      overlap: { overlap: true },
    }))
      if (!only || only.includes(name)) trained[name] = await train(world, options)
    say({ rank: world.rank, trained, over })
  },
  /** What a trainer tells its user. */
  async advice() {
    const { addition, LoopLM, PretrainTrainer } = await everything()
    const world = await parallel.init({ timeout: 60 })
    const model = await LoopLM.create({ ...config, vocab_size: 12 }, { seed: 1, threads: 1, device })
    const warnings = []
    const onWarning = (message) => warnings.push(message)
    const trainer = new PretrainTrainer(model, { task: addition({ digits: 1 }), steps: 2, batchSize: 4, onWarning })
    for await (const { type } of trainer.run()) if (type === 'error') throw new Error('the run failed')
    say({ rank: world.rank, warnings })
  },
  async disagree() {
    const world = await parallel.init({ timeout: 60 })
    await world.agree({ version: '1', seed: String(world.rank === world.size - 1) }, 'test')
  },
  /** A rank that throws while the others wait for it. */
  async fail() {
    const world = await parallel.init({ timeout: 600 })
    if (world.rank === 1) throw new Error('the disk is on fire')
    await world.barrier()
    say('nobody came this far')
  },
  /** A rank that ends in good order, but too early. */
  async leave() {
    const world = await parallel.init({ timeout: 6 })
    if (world.rank === 1) return
    await world.barrier()
  },
  async kill() {
    const world = await parallel.init({ timeout: 600 })
    if (world.rank === 1) process.kill(process.pid, 'SIGKILL')
    await world.barrier()
    say('nobody came this far')
  },
  async force() {
    await parallel.init({ backend: 'mpi' })
  },
  async exit() {
    const world = await parallel.init({ timeout: 600 })
    if (world.rank === 1) process.exit(7)
    await world.barrier()
  },
  /** A rank that is at work for longer than the limit when the others have ended. */
  async late() {
    const world = await parallel.init({ timeout: 6 })
    if (world.rank === 0) await sleep(8_000)
    say({ rank: world.rank })
  },
  async hang() {
    const world = await parallel.init({ timeout: 6 })
    if (world.rank === 1) await sleep(600_000)
    await world.sum([1])
  },
  /** A rank that ends before MPI has begun. */
  async absent() {
    const rank = process.env.OMPI_COMM_WORLD_RANK ?? process.env.PMI_RANK
    if (rank === '1') await sleep(600_000)
    await parallel.init({ timeout: 2 })
  },
}

for (const scenario of process.argv.slice(2)) await scenarios[scenario]()
