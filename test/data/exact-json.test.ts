import { describe, expect, it } from 'vitest'
import { changedIntegers, parseExactJson, writeExactJson } from '../../src/data/exact-json.js'

describe('JSON with numbers as they are written', () => {
  it.each([
    ['{"id": 175928847299117063, "x": [1.0, -0, 1e400, 0.1]}', '{"id":175928847299117063,"x":[1.0,-0,1e400,0.1]}'],
    ['{"1.0 \\" 2.0": "\\\\", "a": "175928847299117063"}', '{"1.0 \\" 2.0":"\\\\","a":"175928847299117063"}'],
    ['{"a": 1, "b": null, "__proto__": {"c": 1.50}}', '{"a":1,"b":null,"__proto__":{"c":1.50}}'],
    ['12345678901234567890', '12345678901234567890'],
  ])('%s', (text, written) => {
    expect(writeExactJson(parseExactJson(text))).toBe(written)
  })

  it('has ordinary values where they say the same', () => {
    expect(parseExactJson('{"a": [1, -2.5, "3.0", true]}')).toEqual({ a: [1, -2.5, '3.0', true] })
    expect(() => parseExactJson('[01]')).toThrow(SyntaxError)
  })

  it('tells which integers JavaScript changes', () => {
    expect(changedIntegers('{"a": 9007199254740993, "b": "9007199254740993", "c": [9007199254740992, 1.0, -0]}')).toEqual([
      '9007199254740993',
    ])
  })
})
