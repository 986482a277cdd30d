import type { BackwardLoops, StateOptions } from '../../model/types.js'

/** The loops that a trainer trains. */
export interface TrainedLoops {
  /** Loops that run. */
  run: number
  /** The loops that are read, from 1. */
  read: readonly number[]
  /** What scores of rollouts need to be those of the training pass. */
  scoring: { loops: number; readLoops?: readonly number[] } & Omit<StateOptions, 'initialStates'>
  backwardLoops?: BackwardLoops
}
