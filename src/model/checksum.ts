import { call, native } from '../native.js'
import type { LoopLM } from './model.js'

/** 16 digits that are equal for equal parameters, adapter included. */
export function parametersChecksum(model: LoopLM): Promise<string> {
  const operation = 'parametersChecksum'
  const handle = model.handle(operation)
  return call(operation, () => native().modelChecksum(handle))
}
