import { LoopLMError } from '../errors.js'
import { warnOfChanges } from '../files/folder-files.js'
import { call, context, type NativeModel, native } from '../native.js'
import { type Checkpoint, readCheckpoint } from './checkpoint.js'
import { architectureOf, withExitGateIf } from './config.js'
import { findGguf, type LoadPlace, type LoadSettings, loadGguf } from './gguf.js'
import { engineQuantization, quantizationText } from './quantization.js'
import type { ModelDType } from './types.js'

/** The result of loading files. */
type Loaded = Pick<Checkpoint, 'config' | 'generation' | 'tokenizer' | 'quantization'> &
  Partial<Pick<Checkpoint, 'code'>> & { handle: NativeModel; dtype: ModelDType }

/** Loads the model of a checkpoint folder or of a GGUF file into the engine. */
export async function loadPretrained(path: string, place: LoadPlace, settings: LoadSettings, operation: string): Promise<Loaded> {
  const file = await findGguf(path, operation)
  if (file !== undefined) return loadGguf(file, place, settings, operation)
  const { weights, quantization: saved, config: own, ...parts } = await readCheckpoint(path, operation)
  const { config, added } = withExitGateIf(settings.exitGate, own, operation)
  if (saved !== undefined && settings.quantization !== undefined) {
    const message = `${path} is quantized already (${quantizationText(saved)}): omit quantize`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  if (saved !== undefined && settings.dequantize) {
    const message = `${path} was saved quantized: load it without dequantize and save it with save(folder, { dequantize: true })`
    throw new LoopLMError('UNSUPPORTED', message, { operation })
  }
  const quantization = saved ?? settings.quantization
  const engine = engineQuantization(quantization, settings.activations, operation)
  const on = context(place.device, place.threads, operation)
  const handle = await call(operation, () =>
    native().modelLoad(on, architectureOf(config), place.dtype, weights, engine, saved !== undefined, added),
  )
  await warnOfChanges(path, weights[0]!)
  return { ...parts, config, handle, quantization, dtype: native().modelDType(handle) }
}
