// Setup of the tests: `toEqual` compares typed arrays of the same bytes at once. vitest walks their elements, which is slow; where
// bytes differ, it still does, and says which.
import { isTypedArray } from 'node:util/types'
import { expect } from 'vitest'

const state = globalThis as { looplmEquality?: true } // once for all test files of a process

if (!state.looplmEquality)
  expect.addEqualityTesters([
    (a: unknown, b: unknown) => {
      if (!isTypedArray(a) || !isTypedArray(b) || a.constructor !== b.constructor) return undefined
      const bytes = ({ buffer, byteOffset, byteLength }: NodeJS.TypedArray) => Buffer.from(buffer, byteOffset, byteLength)
      return bytes(a).equals(bytes(b)) || undefined
    },
  ])
state.looplmEquality = true
