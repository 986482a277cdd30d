// Plays the episodes of a step or of an evaluation, all at the same time.
import { setMaxListeners } from 'node:events'
import { ToolRunner } from '../chat/tools.js'
import { Random } from '../data/random.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { SchedulerStats } from '../model/types.js'
import { type EpisodePlace, EpisodePlayer, type EpisodeRecord, type EpisodeSettings } from './episode.js'
import type { Metrics } from './events.js'
import type { Problem } from './rollout-record.js'

/** What the episodes share. */
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
  /** In seconds. */
  toolTimeout: number
}

/** A problem with the seed of its environment. */
export interface SeededProblem {
  problem: Problem
  seed: number
  /** Sequence number of its first episode. The others have the following numbers. */
  sequence: number
}

const mostRows = 1024 // rows of the batch: more gain nothing, and this bounds the KV cache
const prefillTokens = 4096

/**
 * Plays `groupSize` episodes of each problem.
 *
 * @returns the records in the order of the problems, group after group
 * @throws LoopLMError naming the problem whose environment failed; ABORTED. The other episodes are then already closed.
 */
export async function playEpisodes(
  model: LoopLM,
  problems: readonly SeededProblem[],
  groupSize: number,
  settings: EpisodesSettings,
  signal: AbortSignal | undefined,
): Promise<{ records: EpisodeRecord[]; metrics: Metrics }> {
  const controller = new AbortController()
  setMaxListeners(0, controller.signal) // one listener per waiting call
  const stop = () => controller.abort(new LoopLMError('ABORTED', 'the run was aborted', { cause: signal?.reason }))
  signal?.addEventListener('abort', stop, { once: true })
  if (signal?.aborted === true) stop()
  const places = problems.flatMap((problem) => placesOf(problem, groupSize, settings.branch?.width ?? 1))
  const { toolConcurrency: concurrency, toolTimeout: timeout } = settings
  const { loops } = settings.generation
  using scheduler = model.scheduler({
    maxRows: Math.max(1, Math.min(problems.length * groupSize, mostRows)),
    prefillTokens,
    promptCache: true, // first prompts share their instructions
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

/** The root episodes of a group. Each root stands for `width` episodes with its branches; the last one takes the remainder. */
function placesOf({ problem, seed, sequence }: SeededProblem, groupSize: number, width: number): EpisodePlace[] {
  return Array.from({ length: Math.ceil(groupSize / width) }, (_, root) => {
    const first = root * width
    const count = Math.min(width, groupSize - first)
    const spare = Array.from({ length: count - 1 }, (_, k) => sequence + first + 1 + k)
    return { problem, seed, sequence: sequence + first, spare }
  })
}

/** Plays an episode and its branches. If it branches less often than allowed, more episodes start from the prompt instead. */
async function playTree(
  root: EpisodePlayer,
  settings: EpisodeSettings,
  adopt: (players: readonly EpisodePlayer[]) => void,
): Promise<EpisodeRecord[]> {
  const branches: Promise<{ record: EpisodeRecord }>[] = []
  const { record, spare } = await root.play((players) => {
    adopt(players)
    for (const player of players) branches.push(player.play())
    for (const one of branches) one.catch(() => {}) // the results are awaited below, after the root
  })
  const fresh = spare.map((sequence) => new EpisodePlayer(settings, { ...root.place, sequence, spare: [] }))
  adopt(fresh)
  await Promise.all(fresh.map((player) => player.open()))
  for (const player of fresh) player.enter()
  const others = await Promise.all([...branches, ...fresh.map((player) => player.play())])
  return [record, ...others.map((other) => other.record)]
}

/** Closes all open episodes. An error of close() is only thrown if nothing else has failed. */
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

/**
 * The seeds of a step's environments, one per problem. They depend on the seed, the step, the round and the problem's number.
 */
export function environmentSeeds(seed: number, step: number, round: number, problems: number): number[] {
  const random = new Random(seed, step, environmentStream + round)
  return Array.from({ length: problems }, () => random.word())
}

const environmentStream = 2 ** 18 // above the substreams of rollouts
