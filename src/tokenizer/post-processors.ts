import type { Fields } from './fields.js'

/**
 * Adds special tokens around a text's tokens. It works on a list of parts as in Python, because a template makes each of its
 * tokens a part, which later processors see.
 */
export type PostProcessor = (parts: readonly (readonly number[])[], addSpecialTokens: boolean) => readonly (readonly number[])[]

/** `["<s>", 1]` */
function readToken(fields: Fields, field: string): number {
  const pair = fields.list(field)
  if (pair.length !== 2 || typeof pair[0] !== 'string' || !isId(pair[1])) {
    throw fields.invalid(field, 'must be a pair of a token and its id')
  }
  return pair[1]
}

function isId(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

/** The processors of BERT and RoBERTa only differ in the second text of a pair. */
function around(fields: Fields, separatorInFront: boolean): PostProcessor {
  const [first, last] = [readToken(fields, 'cls'), readToken(fields, 'sep')]
  return (parts, addSpecialTokens) => {
    if (!addSpecialTokens) return parts
    const opening = (i: number) => (i === 0 ? [first] : separatorInFront ? [last] : [])
    return parts.map((ids, i) => [...opening(i), ...ids, last])
  }
}

/** An entry of a template: the ids of special tokens, or which text is inserted. */
type Slot = { ids: readonly number[] } | { text: number }

function template(fields: Fields): PostProcessor {
  const tokens = fields.object('special_tokens')
  const ids = (id: string, slot: Fields): readonly number[] => {
    if (tokens.value(id) === undefined) throw slot.invalid('id', `${JSON.stringify(id)} is not in special_tokens`)
    const list = tokens.object(id).list('ids')
    if (!list.every(isId)) throw tokens.object(id).invalid('ids', 'must be token ids')
    return list
  }
  const slots = (field: string): Slot[] =>
    fields.objects(field).map((entry) => {
      if (entry.value('Sequence') !== undefined) return { text: entry.object('Sequence').word('id', ['A', 'B']) === 'A' ? 0 : 1 }
      const special = entry.object('SpecialToken')
      return { ids: ids(special.string('id'), special) }
    })
  const single = slots('single')
  const pair = fields.value('pair') === undefined ? [] : slots('pair')
  if (single.some((slot) => 'text' in slot && slot.text === 1)) {
    throw fields.invalid('single', 'has the sequence "B", but a single text is "A"')
  }
  return (parts, addSpecialTokens) => {
    if (parts.length > 2) throw fields.invalid('type', 'is a template behind a processor that made more than two parts')
    return (parts.length === 1 ? single : pair).flatMap((slot) => {
      if ('text' in slot) return [parts[slot.text]!]
      return addSpecialTokens ? [slot.ids] : []
    })
  }
}

const readers: Readonly<Record<string, (fields: Fields) => PostProcessor>> = {
  BertProcessing: (fields) => around(fields, false),
  ByteLevel: () => (parts) => parts, // it only trims offsets
  RobertaProcessing: (fields) => around(fields, true),
  Sequence: (fields) => {
    const steps = fields.objects('processors').map(readPostProcessor)
    return (parts, addSpecialTokens) => steps.reduce((made, step) => step(made, addSpecialTokens), parts)
  },
  TemplateProcessing: template,
}

/** @throws LoopLMError INVALID_FILE naming the field */
export function readPostProcessor(fields: Fields): PostProcessor {
  return readers[fields.word('type', Object.keys(readers))]!(fields)
}
