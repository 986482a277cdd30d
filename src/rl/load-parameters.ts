import { join } from 'node:path'
import { LoopLMError } from '../errors.js'
import { adaptableModules, checkAdapter, sameAdapter } from '../model/adapter.js'
import { configDifference } from '../model/config.js'
import { LoopLM } from '../model/model.js'
import type { TrainerConfig } from './options.js'

/**
 * Overwrites a model's parameters with those of a checkpoint of the same configuration.
 *
 * @param folder a Hugging Face checkpoint folder
 * @throws LoopLMError NOT_FOUND or INVALID_FILE naming the file, and the field if the checkpoint computes differently
 */
async function loadParameters(model: LoopLM, folder: string): Promise<void> {
  using loaded = await LoopLM.fromPretrained(folder, model.place)
  const difference = configDifference(model.config, loaded.config)
  if (difference !== undefined) throw new LoopLMError('INVALID_FILE', `${join(folder, 'config.json')}: ${difference}`)
  await model.copyParametersFrom(loaded)
}

/**
 * Loads what {@link saveTrained} wrote into a model.
 * @throws LoopLMError as {@link loadParameters}
 */
export async function loadTrained(model: LoopLM, folder: string): Promise<void> {
  if (model.adapter === undefined) await loadParameters(model, folder)
  else await model.loadAdapter(folder)
}

/** Saves the model, or only its adapter if it has one. */
export async function saveTrained(model: LoopLM, folder: string): Promise<void> {
  if (model.adapter === undefined) await model.save(folder)
  else await model.saveAdapter(folder)
}

/**
 * Adds the adapter that the option `lora` describes, unless the model already has it.
 *
 * @throws LoopLMError INVALID_CONFIG if the model has another adapter
 */
export async function addTrainedAdapter(
  model: LoopLM,
  { lora, seed }: Pick<TrainerConfig, 'lora' | 'seed'>,
  operation: string,
): Promise<void> {
  if (lora === undefined) return
  const own = model.adapter
  if (own === undefined) return model.addAdapter({ ...lora, seed })
  const { modules: targetModules } = checkAdapter(lora, operation, adaptableModules(model.architecture))
  if (sameAdapter(own, { ...lora, targetModules })) return
  const message =
    'lora: the model already has an adapter with another rank, alpha or other modules; remove it, or omit lora to train it'
  throw new LoopLMError('INVALID_CONFIG', message, { operation })
}
