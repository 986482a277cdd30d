// npm run bench:parallel: compares one process with two threads and two processes with one thread each on the same update,
// alternating. Also measures how much of the exchange of gradients overlaps with the backward pass. On a busy machine only the
// ratio of CPU times is meaningful.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { AdamW, LoopLM, parallel, RLTTTrainer } from '../src/index.js'
import { d512 } from './models.js'

const usage = `npm run bench:parallel -- [--ranks 2] [--rounds 3] [--steps 3] [--sequences 8] [--length 128] [--json]
  --ranks N   processes with one thread each, beside one process with N threads`

/** The measurements of one process, in seconds per step. */
interface Measured {
  rank: number
  /** Median time of RLTTTrainer.update. */
  step: number
  /** Mean CPU time of this process in such a step. */
  cpu: number
  /** A step of AdamW after model.backward, without and with exchangeDuringNext. */
  own: { plain: number; overlapped: number }
  /** In overlapped steps: the time of the exchange, and how long computation waited for it. */
  exchanging: number
  waiting: number
  bytes: number
}

const middle = (values: number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!

/** One process of a run, under a launcher or separately. */
async function measure(steps: number, sequences: number, length: number, threads: number, folder: string): Promise<void> {
  const world = await parallel.init()
  const texts = Array.from({ length: sequences }, (_, i) =>
    Array.from({ length }, (_, j) => (i * 7919 + j * 104729 + ((i * j) % 31)) % d512.vocab_size),
  )
  const time = async (run: () => Promise<unknown>) => {
    const begun = performance.now()
    await run()
    return (performance.now() - begun) / 1000
  }

  const trainer = new RLTTTrainer(await LoopLM.create(d512, { seed: 1, threads }), { weights: 'exit-pdf', learningRate: 1e-5 })
  const batch = { sequences: texts, promptLengths: texts.map(() => 1), advantages: texts.map((_, i) => (i % 2 ? 1 : -1)) }
  await trainer.update(batch)
  const sent = world.bytesSent
  const before = process.cpuUsage()
  const times: number[] = []
  for (let i = 0; i < steps; i++) times.push(await time(() => trainer.update(batch)))
  const { user, system } = process.cpuUsage(before)
  const bytes = (world.bytesSent - sent) / steps
  trainer.dispose()

  const own = texts.filter((_, i) => i % world.size === world.rank)
  const coefficients = own.map(() => new Float32Array((length - 1) * d512.total_ut_steps).fill(-1e-4))
  const model = await LoopLM.create(d512, { seed: 1, threads })
  const optimizer = new AdamW(model, { learningRate: 1e-5, world })
  const step = async (overlap: boolean) => {
    if (overlap) await optimizer.exchangeDuringNext()
    await model.backward(own, coefficients)
    await optimizer.step()
  }
  await step(true)
  const plain: number[] = []
  const overlapped: number[] = []
  let [exchanging, waiting] = [0, 0]
  for (let i = 0; i < steps; i++) {
    plain.push(await time(() => step(false)))
    const { exchanging: e, waiting: w } = optimizer.exchanged
    overlapped.push(await time(() => step(true)))
    exchanging += (optimizer.exchanged.exchanging - e) / steps
    waiting += (optimizer.exchanged.waiting - w) / steps
  }
  const found: Measured = {
    rank: world.rank,
    step: middle(times),
    cpu: (user + system) / 1e6 / steps,
    own: { plain: middle(plain), overlapped: middle(overlapped) },
    exchanging,
    waiting,
    bytes,
  }
  writeFileSync(join(folder, `${world.rank}.json`), JSON.stringify(found))
}

const { values } = parseArgs({
  options: {
    ranks: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '3' },
    steps: { type: 'string', default: '3' },
    sequences: { type: 'string', default: '8' },
    length: { type: 'string', default: '128' },
    json: { type: 'boolean', default: false },
    threads: { type: 'string' },
    folder: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
})
const count = (name: 'ranks' | 'rounds' | 'steps' | 'sequences' | 'length') => {
  const n = Number(values[name])
  if (Number.isInteger(n) && n > 0) return n
  console.error(`--${name} takes a whole number above 0, got ${values[name]}\n${usage}`)
  process.exit(2)
}
const [ranks, rounds, steps] = [count('ranks'), count('rounds'), count('steps')]

/** One run: the measurements of its processes, by rank. */
function run(processes: number, threads: number): Measured[] {
  const folder = mkdtempSync(join(tmpdir(), 'looplm-bench-'))
  const program = [
    fileURLToPath(import.meta.url),
    '--steps',
    String(steps),
    '--sequences',
    values.sequences,
    '--length',
    values.length,
  ]
  const command = [process.execPath, ...program, '--threads', String(threads), '--folder', folder]
  const launcher = ['mpirun', '--allow-run-as-root', '--oversubscribe', '--bind-to', 'none', '-n', String(processes)]
  const [file, ...args] = processes === 1 ? command : [...launcher, ...command]
  execFileSync(file!, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  const found = readdirSync(folder).map((name) => JSON.parse(readFileSync(join(folder, name), 'utf8')) as Measured)
  rmSync(folder, { recursive: true })
  return found.sort((a, b) => a.rank - b.rank)
}

async function compare(): Promise<void> {
  if (!String(spawnSync('mpirun', ['--version'], { encoding: 'utf8' }).stdout).includes('Open MPI')) {
    console.error(
      'this bench starts its processes with mpirun of Open MPI, which is not in PATH (Debian: apt-get install openmpi-bin)',
    )
    process.exit(2)
  }
  const alone: Measured[] = []
  const together: Measured[][] = []
  for (let i = 0; i < rounds; i++) {
    alone.push(run(1, ranks)[0]!)
    together.push(run(ranks, 1))
  }
  const most = (of: (m: Measured) => number) => middle(together.map((all) => Math.max(...all.map(of))))
  const total = (of: (m: Measured) => number) => middle(together.map((all) => all.reduce((sum, m) => sum + of(m), 0)))
  const one = { step: middle(alone.map((m) => m.step)), cpu: middle(alone.map((m) => m.cpu)) }
  const many = { step: most((m) => m.step), cpu: total((m) => m.cpu) }
  const exchanging = most((m) => m.exchanging)
  const waiting = most((m) => m.waiting)
  const report = {
    processes: ranks,
    alone: one,
    together: many,
    timeRatio: many.step / one.step,
    cpuRatio: many.cpu / one.cpu,
    own: { plain: most((m) => m.own.plain), overlapped: most((m) => m.own.overlapped) },
    exchange: { seconds: exchanging, waiting, hidden: exchanging > 0 ? 1 - waiting / exchanging : undefined },
    megabytesPerStep: together[0]![0]!.bytes / 1e6,
  }
  if (values.json) return console.log(JSON.stringify(report, null, 2))
  const s = (seconds: number) => `${seconds.toFixed(3)} s`
  console.log(`RLTT update, D 512, 6 layers, ${values.sequences} × ${values.length} tokens, ${rounds} rounds in turns, the middle one:
  1 process, ${ranks} threads:  ${s(one.step)} a step, ${s(one.cpu)} of CPU
  ${ranks} processes, 1 thread: ${s(many.step)} a step, ${s(many.cpu)} of CPU
  ratio ${report.timeRatio.toFixed(3)} of time, ${report.cpuRatio.toFixed(3)} of CPU; ${report.megabytesPerStep.toFixed(1)} MB sent by a process
Your own loop: ${s(report.own.plain)} a step, ${s(report.own.overlapped)} with exchangeDuringNext;
  the exchange took ${s(exchanging)}, computation stood still for ${s(waiting)}: ${(100 * (report.exchange.hidden ?? 0)).toFixed(0)} % hidden`)
}

if (values.help) console.log(usage)
else if (values.folder === undefined) await compare()
else await measure(steps, count('sequences'), count('length'), Number(values.threads), values.folder)
