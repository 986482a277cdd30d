/**
 * Maps option names of TRL and transformers to the options of this library, if they differ by more than spelling
 * (`learning_rate` is found without this table). docs/coming-from-trl.md lists all of their names, and a test compares it with
 * this table.
 */
const trlNames: Readonly<Record<string, readonly string[]>> = {
  max_steps: ['steps'],
  num_train_epochs: ['epochs'],
  data_seed: ['seed'],
  output_dir: ['runDir'],
  resume_from_checkpoint: ['resume'],
  per_device_train_batch_size: ['batchSize', 'promptsPerStep'],
  gradient_accumulation_steps: ['gradientAccumulation'],
  lr_scheduler_type: ['schedule'],
  lr_scheduler_kwargs: ['minLearningRate'],
  adam_beta1: ['adamBetas'],
  adam_beta2: ['adamBetas'],
  adam_epsilon: ['adamEps'],
  gradient_checkpointing: ['recompute'],
  gradient_checkpointing_kwargs: ['recompute'],
  auto_find_batch_size: ['tokensPerMicroBatch'],
  eval_strategy: ['evalEvery'],
  eval_steps: ['evalEvery'],
  save_strategy: ['saveEvery'],
  save_steps: ['saveEvery'],
  save_total_limit: ['keepCheckpoints'],
  num_generations: ['groupSize'],
  num_generations_eval: ['evalSamples'],
  max_completion_length: ['maxNewTokens'],
  generation_batch_size: ['promptsPerStep'],
  steps_per_generation: ['minibatches'],
  num_iterations: ['updatesPerRollout'],
  chat_template_kwargs: ['chatTemplate'],
  vllm_structured_outputs_regex: ['grammar'],
  chat_template_path: ['chatTemplate'],
  delta: ['dualClip'],
  reward_weights: ['reward'],
  reward_funcs: ['reward'],
  loss_type: ['normalizer'],
  importance_sampling_level: ['objective'],
  mask_truncated_completions: ['objective'],
  sync_ref_model: ['objective'],
  ref_model_mixup_alpha: ['objective'],
  entropy_coef: ['objective'],
  log_completions: ['logCompletions'],
  num_completions_to_print: ['logCompletions'],
  assistant_only_loss: ['assistantOnly'],
  max_length: ['contextLength'],
  packing: ['corpus'],
  train_dataset: ['dataset'],
  processing_class: ['tokenizer'],
  peft_config: ['lora'],
  compute_loss_func: ['objective'],
  compute_metrics: ['reward'],
  rollout_func: ['rollout'],
  environment_factory: ['environment'],
  max_tool_calling_iterations: ['maxTurns'],
  report_to: ['loggers'],
}

/** The option, among the known ones, that TRL calls `name`. */
export function optionOfTrl(name: string, known: readonly string[]): string | undefined {
  if (!Object.hasOwn(trlNames, name)) return undefined
  return trlNames[name]!.find((option) => known.includes(option))
}

/** TRL's names with their options here. */
export const namesOfTrl: readonly (readonly [name: string, options: readonly string[]])[] = Object.entries(trlNames)
