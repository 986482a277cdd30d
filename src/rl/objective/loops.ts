import type { BackwardLoops, StateOptions } from '../../model/types.js'

/** The loops that a trainer trains. */
export interface TrainedLoops {
  /** Number of loops that run. */
  run: number
  /** The loops that are read, from 1. */
  read: readonly number[]
  /** Options with which rollouts are scored exactly as in the training pass. */
  scoring: { loops: number; readLoops?: readonly number[] } & Omit<StateOptions, 'initialStates'>
  backwardLoops?: BackwardLoops
}
