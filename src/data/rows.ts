/*
 * What a row of a dataset may hold. Files (jsonl.ts) and rows given in code (rl/problems.ts) are held against the same rules; both put the
 * place of the row in front of what these functions return.
 */

/** A value's type in an error's words. */
export function typeName(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (value === null) return 'null'
  return Array.isArray(value) ? 'an array' : `a value of type ${typeof value}`
}

const rendering = 'render it with tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true })'

/**
 * What is wrong with the fields of a row that looplm reads, or undefined. A row has a string `prompt`, chat `messages` or a string `text`;
 * `answer` and `completion` are strings where they are present.
 *
 * @returns a clause without a subject, for example `field "prompt" must be a string, got null`
 */
export function rowProblem(row: unknown): string | undefined {
  if (typeof row !== 'object' || row === null || Array.isArray(row)) return `must be an object, got ${typeName(row)}`
  const { prompt, messages, text, answer, completion } = row as Record<string, unknown>
  if (messages !== undefined && !Array.isArray(messages)) {
    return `field "messages" must be an array when present, got ${typeName(messages)}`
  }
  if (typeof prompt !== 'string' && (prompt !== undefined || (messages === undefined && typeof text !== 'string'))) {
    if (prompt === undefined && text !== undefined) return `field "text" must be a string, got ${typeName(text)}`
    const names = Object.keys(row).slice(0, 8).join(', ')
    const remedy = Array.isArray(prompt)
      ? `; a prompt of messages is not supported yet: ${rendering}`
      : prompt === undefined && names !== ''
        ? `; the row has the fields ${names}`
        : ''
    return `field "prompt" must be a string, got ${typeName(prompt)}${remedy}`
  }
  for (const [field, value] of Object.entries({ answer, completion })) {
    if (value !== undefined && typeof value !== 'string') {
      return `field "${field}" must be a string when present, got ${typeName(value)}`
    }
  }
  return isConversation(row) ? conversationProblem(row) : undefined
}

/** What is wrong with a row whose prompt is answered, or undefined: other rows would be answered as an empty prompt. */
export function promptProblem(row: unknown): string | undefined {
  const problem = rowProblem(row)
  if (problem !== undefined) return problem
  const { prompt, messages, text } = row as Record<string, unknown>
  if (typeof prompt === 'string' && prompt !== '') return undefined
  const answered = 'prompts are answered here, and the row has'
  if (messages !== undefined) return `field "prompt" is missing: ${answered} messages; ${rendering} and give the result as prompt`
  if (text !== undefined) return `field "prompt" is missing: ${answered} text, which pretrain learns from`
  return undefined
}

/** What is wrong with a row that is learned, or undefined. */
export function lessonProblem(row: unknown): string | undefined {
  const problem = rowProblem(row)
  if (problem !== undefined) return problem
  const { prompt, messages, completion } = row as Record<string, unknown>
  if (messages === undefined) return undefined
  if (prompt !== undefined && prompt !== '') return 'has the fields "prompt" and "messages"; give one of them'
  return completion === undefined ? undefined : 'has the fields "messages" and "completion"; the last message is the completion'
}

/** Whether a row's text are its messages. */
export function isConversation(row: object): boolean {
  const { prompt, messages } = row as Record<string, unknown>
  return messages !== undefined && (prompt === undefined || prompt === '')
}

/** Messages as chat templates expect them. A part that a template cannot render would become "[object Object]". */
function conversationProblem(row: object): string | undefined {
  const { messages, tools, ...others } = row as Record<string, unknown>
  const list = messages as readonly unknown[]
  if (list.length === 0) return 'field "messages" is empty; give at least one message'
  for (const [i, message] of list.entries()) {
    const name = `messages[${i}]`
    if (typeof message !== 'object' || message === null || Array.isArray(message)) {
      return `field "${name}" must be an object with role and content, got ${typeName(message)}`
    }
    const { role, content, tool_calls: calls } = message as Record<string, unknown>
    if (typeof role !== 'string') return `field "${name}.role" must be a string, got ${typeName(role)}`
    if (typeof content === 'string' || (content == null && Array.isArray(calls))) continue
    return `field "${name}.content" must be a string, got ${typeName(content)}`
  }
  if (tools != null) {
    if (!Array.isArray(tools)) return `field "tools" must be an array of JSON schemas, got ${typeName(tools)}`
    const wrong = tools.findIndex((tool) => typeof tool !== 'object' || tool === null || Array.isArray(tool))
    if (wrong !== -1) return `field "tools[${wrong}]" must be a JSON schema, got ${typeName(tools[wrong])}`
  }
  const unused = ['documents', 'chat_template_kwargs'].find((field) => others[field] != null)
  return unused === undefined ? undefined : `field "${unused}" beside messages is not supported; remove it`
}
