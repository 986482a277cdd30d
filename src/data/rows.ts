/*
 * Rules for the rows of a dataset. They apply to files (dataset.ts) and to rows given in code (rl/dataset-rows.ts, rl/lessons.ts),
 * which prefix the returned problem with the position of the row.
 */

/** The name of a value's type in errors. */
export function typeName(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (value === null) return 'null'
  return Array.isArray(value) ? 'an array' : `a value of type ${typeof value}`
}

const answering = 'to let the model answer, pass the messages before the answer as prompt'

/**
 * What is wrong with the fields of a row that looplm reads, or undefined. A row has a `prompt` (a string or chat messages),
 * chat `messages` or a string `text`; `answer` and `completion` are optional strings. If the prompt is messages, `completion`
 * may be messages too.
 *
 * @returns a clause without a subject, for example `field "prompt" must be a string or an array of messages, got null`
 */
export function rowProblem(row: unknown): string | undefined {
  if (typeof row !== 'object' || row === null || Array.isArray(row)) return `must be an object, got ${typeName(row)}`
  const { prompt, messages, text, answer, completion } = row as Record<string, unknown>
  if (messages !== undefined && !Array.isArray(messages)) {
    return `field "messages" must be an array when present, got ${typeName(messages)}`
  }
  const isPrompt = typeof prompt === 'string' || Array.isArray(prompt)
  if (!isPrompt && (prompt !== undefined || (messages === undefined && typeof text !== 'string'))) {
    if (prompt === undefined && text !== undefined) return `field "text" must be a string, got ${typeName(text)}`
    const names = Object.keys(row).slice(0, 8).join(', ')
    const fields = prompt === undefined && names !== '' ? `; the row has the fields ${names}` : ''
    return `field "prompt" must be a string or an array of messages, got ${typeName(prompt)}${fields}`
  }
  if (answer !== undefined && typeof answer !== 'string') {
    return `field "answer" must be a string when present, got ${typeName(answer)}`
  }
  if (completion !== undefined && typeof completion !== 'string' && !(Array.isArray(prompt) && Array.isArray(completion))) {
    const also = Array.isArray(completion) ? ', or messages after a prompt of messages' : ''
    return `field "completion" must be a string when present${also}, got ${typeName(completion)}`
  }
  return isConversation(row) ? conversationProblem(row) : undefined
}

/**
 * What is wrong with a row whose prompt is to be answered, or undefined. Rows without a prompt would become an empty prompt.
 */
export function promptProblem(row: unknown): string | undefined {
  const problem = rowProblem(row)
  if (problem !== undefined) return problem
  const { prompt, messages, text } = row as Record<string, unknown>
  if (Array.isArray(prompt)) {
    const { role } = prompt.at(-1) as { role: string }
    return role === 'assistant'
      ? 'field "prompt" ends with a message of the assistant; remove it, because the model answers the prompt'
      : undefined
  }
  if (typeof prompt === 'string' && prompt !== '') return undefined
  const answered = 'the model answers prompts here, but the row has'
  if (messages !== undefined) return `field "prompt" is missing: ${answered} messages; ${answering}`
  if (text !== undefined) return `field "prompt" is missing: ${answered} text, which pretrain learns from`
  return undefined
}

/** What is wrong with a row to learn from, or undefined. */
export function lessonProblem(row: unknown): string | undefined {
  const problem = rowProblem(row)
  if (problem !== undefined) return problem
  const { prompt, messages, completion, answer } = row as Record<string, unknown>
  if (messages === undefined) {
    if (!Array.isArray(prompt) || completion !== undefined || answer !== undefined) return undefined
    return 'has messages as "prompt" and no text to learn; add a completion or an answer, or rename the column to messages'
  }
  if (prompt !== undefined && prompt !== '') return 'has the fields "prompt" and "messages"; give one of them'
  return completion === undefined ? undefined : 'has the fields "messages" and "completion"; the last message is the completion'
}

/** Whether a row's text is messages. */
export function isConversation(row: object): boolean {
  const { prompt, messages } = row as Record<string, unknown>
  return Array.isArray(prompt) || (messages !== undefined && (prompt === undefined || prompt === ''))
}

/** What is wrong with the messages of a row. A part that a template cannot render would become "[object Object]". */
function conversationProblem(row: object): string | undefined {
  const { messages, prompt, completion, tools, documents, chat_template_kwargs: variables } = row as Record<string, unknown>
  const lists = Array.isArray(prompt) ? { prompt, completion: Array.isArray(completion) ? completion : undefined } : { messages }
  for (const [field, list] of Object.entries(lists)) {
    const problem = list === undefined ? undefined : messagesProblem(field, list as readonly unknown[])
    if (problem !== undefined) return problem
  }
  if (tools != null) {
    if (!Array.isArray(tools)) return `field "tools" must be an array of JSON schemas, got ${typeName(tools)}`
    const wrong = tools.findIndex((tool) => typeof tool !== 'object' || tool === null || Array.isArray(tool))
    if (wrong !== -1) return `field "tools[${wrong}]" must be a JSON schema, got ${typeName(tools[wrong])}`
  }
  if (variables != null && (typeof variables !== 'object' || Array.isArray(variables))) {
    return `field "chat_template_kwargs" must be an object of variables of the template, got ${typeName(variables)}`
  }
  return documents == null ? undefined : 'field "documents" beside messages is not supported; remove it'
}

/** Checks that messages have the form that chat templates expect. */
function messagesProblem(field: string, list: readonly unknown[]): string | undefined {
  if (list.length === 0) return `field "${field}" is empty; give at least one message`
  for (const [i, message] of list.entries()) {
    const name = `${field}[${i}]`
    if (typeof message !== 'object' || message === null || Array.isArray(message)) {
      return `field "${name}" must be an object with role and content, got ${typeName(message)}`
    }
    const { role, content, tool_calls: calls } = message as Record<string, unknown>
    if (typeof role !== 'string') return `field "${name}.role" must be a string, got ${typeName(role)}`
    if (typeof content === 'string' || (content == null && Array.isArray(calls))) continue
    return `field "${name}.content" must be a string, got ${typeName(content)}`
  }
  return undefined
}
