import { z } from 'zod'
import type { Random } from '../data/random.js'
import { parseOptions, type Same } from '../validation/schema.js'
import { defineTask, type Task } from './task.js'

const names = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'

const schema = z
  .strictObject({
    nodes: z.int().min(3).max(names.length).default(8),
    hops: z.int().min(1).default(2),
  })
  .refine(({ nodes, hops }) => hops < nodes, { path: ['hops'], message: 'must be less than nodes' })

/** Options of {@link pointerChasing}. */
export interface PointerChasingOptions {
  /** 3 to 62. Defaults to 8. */
  nodes?: number | undefined
  /** 1 to nodes - 1. Defaults to 2. */
  hops?: number | undefined
}
true satisfies Same<PointerChasingOptions, z.input<typeof schema>>

/**
 * Follows pointers: `20 01 12`, written `200112?0=`, says 2 → 0, 0 → 1, 1 → 2 and asks where `hops` steps from 0 lead;
 * for two hops the answer is `2`. The pointers form one random cycle and are listed in random order. A node is one token
 * (0–9, A–Z, a–z).
 *
 * @throws LoopLMError INVALID_CONFIG naming the option
 *
 * @example
 * ```ts
 * const task = pointerChasing({ nodes: 8, hops: 2 })
 * ```
 */
export function pointerChasing(options: PointerChasingOptions = {}): Task {
  const { nodes, hops } = parseOptions('task pointerChasing', schema, options)
  return defineTask({
    name: 'pointerChasing',
    alphabet: `${names.slice(0, nodes)}?=`,
    maxPromptLength: 2 * nodes + 3,
    maxCompletionLength: 1,
    problems: countCycles(nodes) * nodes,
    draw(random) {
      const next = randomCycle(random, nodes)
      const start = random.integer(nodes)
      let end = start
      for (let hop = 0; hop < hops; hop++) end = next[end]!
      const pointers = next.map((to, from) => `${names[from]}${names[to]}`)
      const key = `${pointers.join('')}?${names[start]}` // does not depend on the order in which the pointers are listed
      const prompt = `${random.shuffle(pointers).join('')}?${names[start]}=`
      return { problem: { prompt, answer: names[end]! }, key }
    },
  })
}

/** next[i] is the successor of node i on a cycle through all nodes. */
function randomCycle(random: Random, nodes: number): number[] {
  const order = random.shuffle(Array.from({ length: nodes }, (_, node) => node))
  const next = new Array<number>(nodes)
  for (const [i, node] of order.entries()) next[node] = order[(i + 1) % nodes]!
  return next
}

function countCycles(nodes: number): number {
  let count = 1
  for (let factor = 2; factor < nodes; factor++) count *= factor
  return count
}
