import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { LoopLM, PretrainTrainer } from '../src/index.js'
import { writeOuroFolder } from './ouro-folder.js'

/** A conversation as the template gets it, the tools beside it, and what the model learns to answer. */
export type Lesson = readonly [messages: readonly object[], tools: readonly object[] | undefined, answer: string]

/**
 * A tiny model that has learnt answers by heart: at temperature 0 it gives them.
 *
 * @param folder where its checkpoint is written
 * @param template a chat template; default that of the folder
 */
export async function learn(folder: string, lessons: readonly Lesson[], template?: string): Promise<LoopLM> {
  const config = { hidden_size: 64, intermediate_size: 128, total_ut_steps: 2, initializer_range: 0.05 }
  await writeOuroFolder(folder, { config })
  if (template !== undefined) await writeFile(join(folder, 'chat_template.jinja'), template)
  const model = await LoopLM.fromPretrained(folder)
  const tokenizer = model.tokenizer!
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false })
  const prompts = lessons.map(([messages, tools]) =>
    encode(tokenizer.applyChatTemplate(messages as never, { addGenerationPrompt: true, tools })),
  )
  const batch = {
    sequences: lessons.map(([, , answer], i) => [...prompts[i]!, ...encode(`${answer}<|im_end|>`)]),
    promptLengths: prompts.map(({ length }) => length),
  }
  using trainer = new PretrainTrainer(model, { learningRate: 3e-3, entropyCoefficient: 0 })
  for (let step = 0, loss = 9; loss > 0.01; step++) {
    if (step === 600) throw new Error(`the lessons were not learnt: ${loss}`)
    loss = (await trainer.update(batch)).loss!
  }
  return model
}
