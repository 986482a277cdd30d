// The stored results of Study I.

/** Measurements of a model on held-out problems. */
export interface Measurement {
  /** Greedy accuracy by loop count, 1 to T. */
  accuracy: number[]
  /** Mean tokens per greedy answer, by loop count. */
  length: number[]
  /** Greedy accuracy and mean loops per token with the gate's exits, by threshold. */
  gates: { threshold: number; accuracy: number; loops: number }[]
  /** Next-token accuracy on held-out answers by loop, in terciles of the base's entropy at the last loop. */
  tokens: Record<Tercile, number[]>
}

export type Tercile = 'easy' | 'medium' | 'hard'

export interface BaseResult {
  id: string
  kind: 'base'
  /** Number of steps of Stage I. */
  steps: number
  /** CPU seconds of training. */
  seconds: number
  final: Measurement
}

export interface TrainingResult {
  id: string
  kind: 'training'
  method: string
  base: number
  learningRate: number
  /** Arrays with one entry per point. `reward` and `length` are those of the training samples. */
  curve: { step: number[]; seconds: number[]; reward: number[]; length: number[]; exitLoop: number[] }
  /** Accuracy by loop count during the run. `seconds` is the CPU time of training so far. */
  checkpoints: { step: number; seconds: number; accuracy: number[] }[]
  final: Measurement
}

export interface TimingResult {
  id: string
  kind: 'timing'
  method: string
  /** Medians over steps: CPU time of the process, and elapsed time. */
  cpuSeconds: number
  wallSeconds: number
  /** Peak bytes of the engine beyond the weights (gradients, optimizer, teacher, activations), and peak resident memory. */
  engineBytes: number
  residentBytes: number
}

export type Result = BaseResult | TrainingResult | TimingResult
