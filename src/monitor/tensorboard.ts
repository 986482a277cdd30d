/*
 * TensorBoard's event files: records of TFRecord framing, each the protocol buffer `Event` with one `Summary`. Only scalars are
 * written, so the few fields are put together here by hand.
 *
 *   record   length (8 bytes, little-endian), masked CRC of these, the event, masked CRC of the event
 *   Event    1 wall_time: double, 2 step: int64, 3 file_version: string, 5 summary: Summary, 7 session_log: SessionLog
 *   Summary  1 value: repeated Value;  Value  1 tag: string, 2 simple_value: float;  SessionLog  1 status: START = 1
 */

const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1
  return crc
})

/** CRC-32C (Castagnoli, RFC 3720). */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) crc = crcTable[(crc ^ byte) & 0xff]! ^ (crc >>> 8)
  return (crc ^ 0xffffffff) >>> 0
}

/**
 * The head of an event file. TensorBoard then drops what earlier files of the run contain from this step on, because a resumed
 * run repeats those steps.
 *
 * @param step the first step that will be written
 * @param seconds since 1970
 */
export function eventFileHead(step: number, seconds: number): Uint8Array {
  const version = event(0, seconds, field(3, Buffer.from('brain.Event:2')))
  return Buffer.concat([version, event(step, seconds, field(7, varintField(1, 1)))])
}

/**
 * The metrics of a step as one record.
 *
 * @param seconds since 1970
 */
export function scalarEvent(step: number, metrics: Readonly<Record<string, number>>, seconds: number): Uint8Array {
  const values = Object.entries(metrics).map(([tag, value]) => {
    const simple = Buffer.alloc(5)
    simple[0] = (2 << 3) | 5 // field 2, 4 bytes
    simple.writeFloatLE(value, 1)
    return field(1, Buffer.concat([field(1, Buffer.from(tag)), simple]))
  })
  return event(step, seconds, field(5, Buffer.concat(values)))
}

function event(step: number, seconds: number, what: Buffer): Buffer {
  const time = Buffer.alloc(9)
  time[0] = (1 << 3) | 1 // field 1, 8 bytes
  time.writeDoubleLE(seconds, 1)
  const data = Buffer.concat([time, varintField(2, step), what])
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(data.length))
  return Buffer.concat([length, maskedCrc(length), data, maskedCrc(data)])
}

function maskedCrc(bytes: Uint8Array): Buffer {
  const crc = crc32c(bytes)
  const masked = Buffer.alloc(4)
  masked.writeUInt32LE((((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0)
  return masked
}

/** A field with a length: string, bytes or a message. */
function field(number: number, bytes: Buffer): Buffer {
  return Buffer.concat([varint((number << 3) | 2), varint(bytes.length), bytes])
}

function varintField(number: number, value: number): Buffer {
  return Buffer.concat([varint(number << 3), varint(value)])
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) | 128)
  return Buffer.from([...bytes, value])
}
