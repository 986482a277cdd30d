// What a run of Study I stores.

/** What a model does on held-out problems. */
export interface Measurement {
  /** Greedy accuracy by loop count, 1 to T. */
  accuracy: number[]
  /** Mean tokens per greedy answer, by loop count. */
  length: number[]
  /** Greedy accuracy and mean loops per token under the gate's exits, by threshold. */
  gates: { threshold: number; accuracy: number; loops: number }[]
  /** Accuracy of the next token of held-out answers by loop, in terciles of the base's entropy at the last loop. */
  tokens: Record<Tercile, number[]>
}

export type Tercile = 'easy' | 'medium' | 'hard'

export interface BaseResult {
  id: string
  kind: 'base'
  /** Steps of Stage I. */
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
  /** Arrays with one entry per point; `reward` and `length` are of the samples that trained. */
  curve: { step: number[]; seconds: number[]; reward: number[]; length: number[]; exitLoop: number[] }
  /** Accuracy by loop count during the run; `seconds` is CPU time of training so far. */
  checkpoints: { step: number; seconds: number; accuracy: number[] }[]
  final: Measurement
}

export interface TimingResult {
  id: string
  kind: 'timing'
  method: string
  /** Medians over steps: of the process's CPU time and of time that passed. */
  cpuSeconds: number
  wallSeconds: number
  /** Most bytes that the engine held beyond the weights: gradients, optimizer, teacher, activations; and the resident peak. */
  engineBytes: number
  residentBytes: number
}

export type Result = BaseResult | TrainingResult | TimingResult
