import type { z } from 'zod'
import type { LoopLM } from '../model/model.js'
import { type OptionDoc, schemaOptions } from '../validation/schema-docs.js'
import { grpoSchema, objectiveTrainerSchema, rlttSchema } from './config-rollouts.js'
import { looprptSchema, pretrainSchema } from './config-tokens.js'
import { GRPOTrainer } from './grpo.js'
import { LoopRPTTrainer } from './looprpt.js'
import { ObjectiveTrainer } from './objective-trainer.js'
import { PretrainTrainer } from './pretrain.js'
import { RLTTTrainer } from './rltt.js'

/** A trainer, as configuration files, the command line and the documentation use it. */
interface Entry<Trainer> {
  /** The title for headings. */
  title: string
  /** Options that are plain data. */
  schema: z.ZodObject
  /** @param options those of the schema, plus the task, the rewards and the callbacks; the trainer checks them */
  create(model: LoopLM, options: object): Trainer
}

function entry<Trainer>(
  title: string,
  schema: z.ZodObject,
  Class: new (model: LoopLM, options: object) => Trainer,
): Entry<Trainer> {
  return { title, schema, create: (model, options) => new Class(model, options) }
}

/** The trainers, by their names in configuration files and on the command line. */
export const trainers = {
  rltt: entry('RLTT', rlttSchema, RLTTTrainer),
  grpo: entry('GRPO', grpoSchema, GRPOTrainer),
  objective: entry('Your own objectives', objectiveTrainerSchema, ObjectiveTrainer),
  looprpt: entry('LoopRPT', looprptSchema, LoopRPTTrainer),
  pretrain: entry('Pre-training and fine-tuning', pretrainSchema, PretrainTrainer),
} as const

/** The name of a trainer in configuration files and on the command line. */
export type TrainerName = keyof typeof trainers

/** The names of all trainers. */
export const trainerNames = Object.keys(trainers) as [TrainerName, ...TrainerName[]]

/**
 * The options of a trainer, read from its schema.
 *
 * @example
 * ```ts
 * for (const { name, type, description } of trainerOptions('rltt')) console.log(name, type, description)
 * ```
 */
export function trainerOptions(trainer: TrainerName): OptionDoc[] {
  return schemaOptions(trainers[trainer].schema)
}
