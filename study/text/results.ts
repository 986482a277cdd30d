// What a run of LoopRPT on text stores.
import type { GatePoint } from '../gates.js'

/** Next bytes of held-out blocks. */
export interface Measurement {
  /** By loop count: accuracy, and loss in nats. */
  accuracy: number[]
  loss: number[]
  /** Exits by the gate and by entropy, a point per threshold. */
  gate: GatePoint[]
  entropy: GatePoint[]
}

/** The bytes of the measurement that are hard for the base. */
export interface HardBytes {
  /** The base's entropy at full depth is above so many nats. */
  above: number
  /** Their share of all bytes. */
  share: number
  /** Accuracy by loop count: of the base, and after training. */
  base: number[]
  trained: number[]
}

export interface Result {
  id: string
  kind: 'base' | 'training'
  processor: string
  arm: string
  base: number
  /** Of the text; runs of other texts are not compared. */
  text: string
  steps: number
  /** CPU seconds of training. */
  seconds: number
  /** Of a base: the share by which its held-out loss fell over the last quarter of its training. */
  fell?: number
  final: Measurement
  /** Of trained bases, by threshold. */
  hard?: HardBytes[]
  /** Of LoopRPT: expected norm of the noise by the mean norm of the base's normed states at the last loop. */
  noise?: number
}
