import { z } from 'zod'

/** An option, as the documentation shows it. */
export interface OptionDoc {
  name: string
  /** The allowed values, for example `"group" | "none"` or `integer >= 1`. */
  type: string
  /** The default as JSON. undefined if there is none. */
  default: string | undefined
  description: string
}

interface JsonSchema {
  type?: string | string[]
  enum?: unknown[]
  const?: unknown
  anyOf?: JsonSchema[]
  oneOf?: JsonSchema[]
  properties?: Record<string, JsonSchema>
  additionalProperties?: JsonSchema | boolean
  items?: JsonSchema
  prefixItems?: JsonSchema[]
  minimum?: number
  maximum?: number
  exclusiveMinimum?: number
  exclusiveMaximum?: number
  default?: unknown
  description?: string
}

/** The fields of an object's schema. */
export function schemaOptions(object: z.ZodType): OptionDoc[] {
  const schema = z.toJSONSchema(object, { io: 'input' })
  return Object.entries(schema.properties ?? {}).map(([name, property]) => {
    const field = property as JsonSchema
    return {
      name,
      type: typeText(field),
      default: field.default === undefined ? undefined : JSON.stringify(field.default),
      description: field.description ?? '',
    }
  })
}

function typeText(field: JsonSchema): string {
  if (field.properties !== undefined) return `{ ${Object.keys(field.properties).join(', ')} }`
  if (typeof field.additionalProperties === 'object' && Object.keys(field.additionalProperties).length > 0)
    return `${typeText(field.additionalProperties)} by name`
  if (field.oneOf !== undefined) return field.oneOf.map(typeText).join(' | ')
  if (field.anyOf !== undefined) return field.anyOf.map(typeText).join(' | ')
  if (field.enum !== undefined) return field.enum.map((value) => JSON.stringify(value)).join(' | ')
  if (field.const !== undefined) return JSON.stringify(field.const)
  if (field.prefixItems !== undefined) return `[${field.prefixItems.map(typeText).join(', ')}]`
  if (field.items !== undefined) return `list of ${typeText(field.items)}`
  const bounds = [
    field.minimum === undefined ? undefined : `>= ${field.minimum}`,
    field.exclusiveMinimum === undefined ? undefined : `> ${field.exclusiveMinimum}`,
    field.maximum === undefined || field.maximum === Number.MAX_SAFE_INTEGER ? undefined : `<= ${field.maximum}`,
    field.exclusiveMaximum === undefined ? undefined : `< ${field.exclusiveMaximum}`,
  ].filter((bound) => bound !== undefined)
  return [[field.type ?? 'any'].flat().join(' | '), bounds.join(', ')].filter((part) => part !== '').join(' ')
}
