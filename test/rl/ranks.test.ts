// What the processes of a run tell each other. Both are in this process, with a world that only gathers bytes.
import { expect, it } from 'vitest'
import { LoopLMError } from '../../src/errors.js'
import type { World } from '../../src/index.js'
import { Ranks } from '../../src/rl/ranks.js'
import { refusal } from '../refusal.js'

it('an abort has the same reason in every process, so that all of them end as interrupted', async () => {
  const told: Uint8Array[] = []
  let complete = (_told: Uint8Array[]) => {}
  const gathered = new Promise<Uint8Array[]>((resolve) => {
    complete = resolve
  })
  const world = (rank: number) => ({
    ...{ rank, size: 2 },
    gatherBytes(bytes: Uint8Array) {
      told[rank] = bytes
      if (Object.keys(told).length === 2) complete(told)
      return gathered
    },
  })
  const ends = (rank: number) => () => {
    if (rank === 1) throw new LoopLMError('ABORTED', 'stopped', { cause: 'SIGTERM' })
  }
  const errors = [0, 1].map((rank) => refusal(() => new Ranks(world(rank) as unknown as World).all('answers', ends(rank))))
  expect((await Promise.all(errors)).map(({ code, message, cause }) => [code, message, cause])).toEqual([
    ['ABORTED', 'answers: rank 1: stopped', 'SIGTERM'],
    ['ABORTED', 'stopped', 'SIGTERM'],
  ])
})
