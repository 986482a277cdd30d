import { LoopLM } from '../model/model.js'

/**
 * Overwrites a model's parameters with those of a checkpoint of the same sizes.
 *
 * @param folder a Hugging Face checkpoint folder
 * @throws LoopLMError NOT_FOUND or INVALID_FILE naming the file, INVALID_SHAPE naming a parameter that does not fit
 */
async function loadParameters(model: LoopLM, folder: string): Promise<void> {
  const { device, dtype } = model
  using loaded = await LoopLM.fromPretrained(folder, { device, dtype })
  for (const { name } of model.parameters()) await model.setParameter(name, await loaded.getParameter(name))
}

/** Reads into a model what {@link saveTrained} wrote of it. @throws LoopLMError as {@link loadParameters} */
export async function loadTrained(model: LoopLM, folder: string): Promise<void> {
  if (model.adapter === undefined) await loadParameters(model, folder)
  else await model.loadAdapter(folder)
}

/** Writes the model, or the adapter alone where it has one. */
export async function saveTrained(model: LoopLM, folder: string): Promise<void> {
  if (model.adapter === undefined) await model.save(folder)
  else await model.saveAdapter(folder)
}
