// The episodes of a step or of an evaluation: all of them run together.
import { setMaxListeners } from 'node:events'
import { ToolRunner } from '../chat/tools.js'
import { Random } from '../data/random.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { SchedulerStats } from '../model/types.js'
import { type EpisodePlace, EpisodePlayer, type EpisodeRecord, type EpisodeSettings } from './episode.js'
import type { Metrics } from './events.js'
import type { Problem } from './rollout-record.js'

/** What the episodes have in common. */
export interface EpisodesSettings
  extends Pick<
    EpisodeSettings,
    | 'environment'
    | 'tools'
    | 'tokenizer'
    | 'chat'
    | 'generation'
    | 'maxTurns'
    | 'maxEpisodeTokens'
    | 'reencode'
    | 'branch'
    | 'timeout'
    | 'nameOf'
  > {
  branch?: { entropy: number; width: number } | undefined
  toolConcurrency: number
  /** Seconds. */
  toolTimeout: number
}

/** A problem with the seed of its environment. */
export interface SeededProblem {
  problem: Problem
  seed: number
  /** Of its first episode; the others follow. */
  sequence: number
}

const mostRows = 1024 // of the batch: more gain nothing, and bound the cache of keys and values
const prefillTokens = 4096

/**
 * Plays `groupSize` episodes of each problem.
 *
 * @returns the records in the order of the problems, group after group
 * @throws LoopLMError naming the problem whose environment failed; ABORTED. The others are closed by then.
 */
export async function playEpisodes(
  model: LoopLM,
  problems: readonly SeededProblem[],
  groupSize: number,
  settings: EpisodesSettings,
  signal: AbortSignal | undefined,
): Promise<{ records: EpisodeRecord[]; metrics: Metrics }> {
  const controller = new AbortController()
  setMaxListeners(0, controller.signal) // one per waiting call
  const stop = () => controller.abort(new LoopLMError('ABORTED', 'the run was aborted', { cause: signal?.reason }))
  signal?.addEventListener('abort', stop, { once: true })
  if (signal?.aborted === true) stop()
  const places = problems.flatMap((problem) => placesOf(problem, groupSize, settings.branch?.width ?? 1))
  const { toolConcurrency: concurrency, toolTimeout: timeout } = settings
  const { loops } = settings.generation
  using scheduler = model.scheduler({
    maxRows: Math.max(1, Math.min(problems.length * groupSize, mostRows)),
    prefillTokens,
    promptCache: true, // openings have their instructions in common
    ...(loops === undefined ? {} : { loops }),
  })
  const runner = new ToolRunner({ concurrency, timeout, signal: controller.signal })
  const shared = { ...settings, scheduler, runner, encoded: new Map<string, number[]>(), signal: controller.signal }
  const players = places.map((place) => new EpisodePlayer(shared, place))
  const together = async <T>(action: (player: EpisodePlayer) => Promise<T>): Promise<T[]> => {
    const all = players.map((player) => action(player))
    for (const one of all) one.catch((error: unknown) => controller.abort(error)) // the first failure ends the others
    const settled = await Promise.allSettled(all)
    controller.signal.throwIfAborted()
    return settled.map((one) => (one as PromiseFulfilledResult<T>).value)
  }
  try {
    await together((player) => player.open())
    for (const player of players) player.enter()
    const trees = await together((player) => playTree(player, shared, (more) => players.push(...more)))
    const records = trees.flat()
    return { records, metrics: metricsOf(records, scheduler.stats()) }
  } finally {
    signal?.removeEventListener('abort', stop)
    await closeAll(players, controller.signal)
  }
}

/** The episodes of a group that begin at its prompt: each stands for `width` of them, the last one for what is left. */
function placesOf({ problem, seed, sequence }: SeededProblem, groupSize: number, width: number): EpisodePlace[] {
  return Array.from({ length: Math.ceil(groupSize / width) }, (_, root) => {
    const first = root * width
    const count = Math.min(width, groupSize - first)
    const spare = Array.from({ length: count - 1 }, (_, k) => sequence + first + 1 + k)
    return { problem, seed, sequence: sequence + first, spare }
  })
}

/** An episode with those that branch off it. Where fewer do than may, others begin at the prompt in their place. */
async function playTree(
  root: EpisodePlayer,
  settings: EpisodeSettings,
  adopt: (players: readonly EpisodePlayer[]) => void,
): Promise<EpisodeRecord[]> {
  const branches: Promise<{ record: EpisodeRecord }>[] = []
  const { record, spare } = await root.play((players) => {
    adopt(players)
    for (const player of players) branches.push(player.play())
    for (const one of branches) one.catch(() => {}) // awaited below, after the root
  })
  const fresh = spare.map((sequence) => new EpisodePlayer(settings, { ...root.place, sequence, spare: [] }))
  adopt(fresh)
  await Promise.all(fresh.map((player) => player.open()))
  for (const player of fresh) player.enter()
  const others = await Promise.all([...branches, ...fresh.map((player) => player.play())])
  return [record, ...others.map((other) => other.record)]
}

/** Closes what is open. What close() throws counts where nothing else has failed. */
async function closeAll(players: readonly EpisodePlayer[], signal: AbortSignal): Promise<void> {
  const closed = await Promise.allSettled(players.map((player) => player.close()))
  const failed = closed.find(({ status }) => status === 'rejected')
  if (failed !== undefined && !signal.aborted) throw (failed as PromiseRejectedResult).reason
}

function metricsOf(records: readonly EpisodeRecord[], stats: SchedulerStats): Metrics {
  const sum = (of: (record: EpisodeRecord) => number) => records.reduce((total, record) => total + of(record), 0)
  const calls = sum((record) => record.calls)
  return {
    'episodes/turns': sum(({ turns }) => turns.length) / Math.max(1, records.length),
    'tools/call_frequency': calls / Math.max(1, records.length),
    'tools/failure_frequency': calls === 0 ? 0 : sum(({ failures }) => failures) / calls,
    'sampling/prefilled_tokens': stats.prefilled,
    'sampling/reused_tokens': stats.reused,
    'sampling/evicted_sequences': stats.evicted,
  }
}

/** The seeds of the environments of a step, one per problem: they follow from the step, the round and the number of the problem. */
export function environmentSeeds(seed: number, step: number, round: number, problems: number): number[] {
  const random = new Random(seed, step, environmentStream + round)
  return Array.from({ length: problems }, () => random.word())
}

const environmentStream = 2 ** 18 // above the substreams of rollouts
