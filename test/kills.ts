// Runs of the command line that are killed at random moments, resumed, and compared with one that nobody disturbed.

import type { ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { stringify } from 'yaml'
import { Random } from '../src/data/random.js'
import { OneProcess, runProgram } from './cli/program.js'
import { timeless } from './timeless.js'

const base = {
  model: { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 },
  task: { name: 'addition', digits: 1 },
  threads: 1,
}
const evaluations = { evalEvery: 2, evalProblems: 8, metricForBestModel: 'eval/loop_2/reward', saveBest: 2 }
const policy = { promptsPerStep: 3, groupSize: 4, learningRate: 0.003, schedule: 'cosine', warmupSteps: 3, logprobCheckEvery: 3 }

/** A configuration per trainer (two for pre-training: problems and text), with everything that a resumed run must remember. */
export const configurations = {
  pretrain: { ...base, trainer: 'pretrain', options: { ...evaluations, batchSize: 8, learningRate: 0.01, schedule: 'linear' } },
  text: {
    ...{ ...base, trainer: 'pretrain', task: undefined, corpus: 'text.txt', tokenizer: 'bytes' },
    options: { evalEvery: 3, evalProblems: 2, contextLength: 24, batchSize: 5, learningRate: 0.01, schedule: 'cosine' },
  },
  rltt: { ...base, trainer: 'rltt', reward: 'varied.mjs', options: { ...policy, beta: 0.05 } },
  grpo: { ...base, trainer: 'grpo', reward: 'varied.mjs', options: { ...policy, minibatches: 2, updatesPerRollout: 2 } },
  looprpt: { ...base, trainer: 'looprpt', options: { ...evaluations, batchSize: 6, rollouts: 2, learningRate: 0.01 } },
  objective: {
    ...base,
    trainer: 'objective',
    reward: 'varied.mjs',
    options: { ...policy, objective: 'dapo', updatesPerRollout: 2 },
  },
  lora: { ...base, trainer: 'rltt', reward: 'varied.mjs', options: { ...policy, seed: 3, lora: { rank: 2 }, beta: 0.05 } },
} as const

/** What a series of kills did. */
export interface KillReport {
  kills: number
  /** Kills that left a half-written folder behind. */
  whileSaving: number
  /** Kills before the first step after a start. */
  whileStarting: number
  /** Starts after which at least one step was made, with the last and undisturbed one. */
  lives: number
  /** Seconds from a kill to the end of the program, or of the launcher and all its ranks; the most. */
  slowestEnd: number
}

/** Waits until processes have ended, and returns the seconds since one of them was killed. @throws Error where one outlives the limit */
async function endOf({ at, pids }: { at: number; pids: readonly number[] }, limit: number): Promise<number> {
  const alive = (pid: number) => ![undefined, 'Z'].includes(statOf(pid)?.state)
  for (;;) {
    const seconds = (performance.now() - at) / 1000
    const left = pids.filter(alive)
    if (left.length === 0) return seconds
    if (seconds > limit) throw new Error(`${left.length} ranks were left ${seconds.toFixed(1)} s after a kill`)
    await sleep(20)
  }
}

function statOf(pid: number): { state: string; parent: number } | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const [, state, parent] = stat.slice(stat.lastIndexOf(')')).split(' ')
    return { state: state!, parent: Number(parent) }
  } catch {
    return undefined // it has ended
  }
}

/** The processes of the program below a launcher. */
function ranksOf(launcher: number): number[] {
  const parents = new Map<number, number>()
  for (const name of readdirSync('/proc')) {
    const parent = /^\d+$/.test(name) ? statOf(Number(name))?.parent : undefined
    if (parent !== undefined) parents.set(Number(name), parent)
  }
  const below = (pid: number): boolean => pid === launcher || (parents.has(pid) && pid > 1 && below(parents.get(pid)!))
  return [...parents.keys()].filter((pid) => pid !== launcher && below(pid) && executableOf(pid) === process.execPath)
}

function executableOf(pid: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/exe`)
  } catch {
    return undefined
  }
}

/**
 * Kills a run with a checkpoint at every step at random moments until it has been killed often enough, then lets it end.
 *
 * @param name folder of the run inside `root`
 * @param options.milliseconds longest time between the first step after a start and the kill
 * @param options.launcher starts the program as several ranks, of which a random one is killed
 * @param options.limit seconds within which all ranks must have ended once one was killed
 * @throws Error when the run does not resume, or ranks go on
 */
export async function killAndResume(
  root: string,
  name: string,
  config: object,
  options: {
    kills: number
    steps: number
    seed: number
    milliseconds?: number
    launcher?: readonly string[]
    limit?: number
  },
): Promise<KillReport> {
  const { kills, steps, seed, milliseconds: longest = 120, launcher, limit = 60 } = options
  const random = new Random(seed)
  const report = { kills: 0, whileSaving: 0, whileStarting: 0, lives: 0, slowestEnd: 0 }
  await writeRun(root, name, config)
  const args = [
    'train',
    `${name}.yaml`,
    '--run-dir',
    name,
    '--set',
    `steps=${steps}`,
    '--set',
    'saveEvery=1',
    '--resume',
    '--json',
  ]
  for (;;) {
    const last = report.kills === kills
    const early = random.uniform() < 0.15 // while it still starts
    const milliseconds = random.uniform() * (early ? 600 : longest)
    let timer: NodeJS.Timeout | undefined
    let killed: { at: number; pids: number[] } | undefined
    const killNow = (child: ChildProcess) => {
      const pids = launcher === undefined ? [child.pid!] : ranksOf(child.pid!)
      if (pids.length === 0) {
        timer = setTimeout(killNow, 20, child) // the launcher has not started them
        return
      }
      killed = { at: performance.now(), pids }
      process.kill(pids[random.integer(pids.length)]!, 'SIGKILL')
    }
    const kill = (child: ChildProcess) => {
      timer ??= setTimeout(killNow, milliseconds, child)
    }
    const when = last ? {} : early ? { started: kill } : { watch: kill }
    const { code, stdout, stderr } = await runProgram(args, { cwd: root, launcher, ...when })
    clearTimeout(timer)
    if (stdout !== '') report.lives++
    if (killed !== undefined && code !== 0) {
      report.kills++
      report.slowestEnd = Math.max(report.slowestEnd, await endOf(killed, limit))
      if (stdout === '') report.whileStarting++
      const names = await readdir(join(root, name, 'checkpoints')).catch(() => [])
      if (names.some((entry) => entry.startsWith('.'))) report.whileSaving++
    } else if (code === 0) return report
    else throw new Error(`${name} did not resume (code ${code}): ${stderr}\n${stdout.slice(-2000)}`)
  }
}

/** The same run without a disturbance, by a launcher or in a process that takes commands. */
export async function runStraight(
  root: string,
  name: string,
  config: object,
  steps: number,
  by?: readonly string[] | OneProcess,
): Promise<void> {
  await writeRun(root, name, config)
  const args = ['train', `${name}.yaml`, '--run-dir', name, '--set', `steps=${steps}`]
  const run = by instanceof OneProcess ? by.looplm(root, args) : runProgram(args, { cwd: root, launcher: by })
  const { code, stderr } = await run
  if (code !== 0) throw new Error(`${name}: ${stderr}`)
}

/** Everything that a run leaves, apart from times: the final checkpoint's bytes, the metrics and the completions. */
export async function outcomeOf(root: string, name: string, steps: number): Promise<Record<string, string>> {
  const checkpoint = join(root, name, 'checkpoints', `step-${steps}`)
  const found: Record<string, string> = {}
  for (const file of (await readdir(checkpoint)).sort()) {
    const bytes = await readFile(join(checkpoint, file))
    if (file.endsWith('.safetensors')) found[file] = createHash('sha256').update(bytes).digest('hex')
    else if (file !== 'trainer_state.json') found[file] = bytes.toString()
    else {
      const { config: _, checksum: __, ...state } = JSON.parse(bytes.toString())
      found[file] = JSON.stringify(state)
    }
  }
  for (const file of ['metrics.jsonl', 'completions.jsonl']) {
    const text = await readFile(join(root, name, file), 'utf8').catch(() => '')
    const lines = text.split('\n').map((line) => line && JSON.stringify(timeless(JSON.parse(line))))
    found[file] = lines.join('\n')
  }
  return found
}

async function writeRun(root: string, name: string, config: object): Promise<void> {
  await mkdir(root, { recursive: true })
  await writeFile(join(root, `${name}.yaml`), stringify(config))
  const sentence = (_: unknown, i: number) => `Sentence ${i} has ${(i * 7) % 10} birds and ${(i * 3) % 7} cats.`
  await writeFile(join(root, 'text.txt'), Array.from({ length: 100 }, sentence).join('\n'))
  await writeFile(join(root, 'varied.mjs'), 'export const varied = (prompt, completion) => completion.charCodeAt(0) % 7\n')
}
