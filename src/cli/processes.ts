// Commands that several processes of a launcher run together.
import { Option } from 'commander'
import { joinedWorld, type ParallelOptions, parallel } from '../parallel.js'
import { Ranks } from '../rl/ranks.js'

/** The flags of {@link parallelOption}. */
export interface ParallelFlags {
  parallel?: 'auto' | 'off'
}

/** --parallel. */
export function parallelOption(): Option {
  const what = 'auto: the processes of mpirun, mpiexec or srun share the work; off: each works alone (default: auto)'
  return new Option('--parallel <mode>', what).choices(['auto', 'off'])
}

/** Joins the processes that a launcher started together with this one. */
export async function joinProcesses(options: Pick<ParallelOptions, 'backend' | 'timeout'>): Promise<Ranks> {
  await parallel.init(options)
  return new Ranks(joinedWorld())
}

/** Whether this process writes the output for all. */
export function leads(): boolean {
  return (joinedWorld()?.rank ?? 0) === 0
}
