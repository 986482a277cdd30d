// A model small enough for the float64 reference device, and a task for it.
import { expect } from 'vitest'
import { LoopLM } from '../src/model/model.js'
import { addition } from '../src/tasks/index.js'
import type { DeviceName } from '../src/tensor/types.js'

export const tinyTask = addition({ digits: 1 })

export const tinyConfig = {
  vocab_size: 12,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  total_ut_steps: 3,
  initializer_range: 0.3, // far from uniform predictions, so that gradients are not small
}

/** One whose widths groups of 32 divide, with grouped queries. */
export const smallConfig = {
  vocab_size: 50,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  total_ut_steps: 3,
  initializer_range: 0.2,
}

export const tinyModel = (device: DeviceName = 'reference', seed = 1) => LoopLM.create(tinyConfig, { device, seed })

/** Two groups of four completions; the rewards of the first differ, those of the second do not. */
export const tinyBatch = {
  sequences: [
    [1, 10, 2, 11, 0, 3],
    [1, 10, 2, 11, 0, 4],
    [1, 10, 2, 11, 5],
    [1, 10, 2, 11, 1, 2, 3],
    [7, 10, 8, 11, 1, 5],
    [7, 10, 8, 11, 1, 6],
    [7, 10, 8, 11, 9],
    [7, 10, 8, 11, 0, 2, 4],
  ],
  promptLengths: Array(8).fill(4),
  rewards: [1, 0, 0, 0, 0, 0, 0, 0],
}

/** A reward that an untrained model earns in varied amounts. */
export const variedReward = (_prompt: string, completion: string) => completion.charCodeAt(0) % 7

/** Every parameter by name. */
export async function parametersOf(model: LoopLM): Promise<Map<string, Float32Array | Float64Array>> {
  const values = new Map<string, Float32Array | Float64Array>()
  for (const { name } of model.parameters()) values.set(name, await model.getParameter(name))
  return values
}

/** Largest absolute difference between two sets of arrays with the same names and lengths, relative to the largest value. */
export function difference(a: Map<string, ArrayLike<number>>, b: Map<string, ArrayLike<number>>): number {
  const shapes = [a, b].map((set) => [...set].map(([name, { length }]) => `${name} ${length}`).sort())
  expect(shapes[1]).toEqual(shapes[0])
  let largest = 0
  let size = 0
  for (const [name, values] of a) {
    for (let i = 0; i < values.length; i++) {
      largest = Math.max(largest, Math.abs(values[i]! - b.get(name)![i]!))
      size = Math.max(size, Math.abs(values[i]!))
    }
  }
  return largest / size
}
