/** Splits pieces into tokens. */
export interface Model {
  /**
   * Appends the ids of a piece's tokens.
   *
   * @returns for a long piece, a generator that does the work and appends the ids at its end; undefined if they are already
   *   appended
   * @throws UnknownPiece if the vocabulary has no token for a part of it and no unknown token
   */
  tokenize(piece: string, ids: number[]): Generator<void, void> | undefined
}

/** Text for which the vocabulary has no token. */
export class UnknownPiece extends Error {
  constructor(readonly piece: string) {
    super(`no token for ${JSON.stringify(piece)}`)
  }
}

/** The tokens `<0x00>` to `<0xFF>` of some bytes. undefined if the vocabulary lacks one of them. */
export function byteTokens(bytes: Uint8Array, vocab: ReadonlyMap<string, number>): number[] | undefined {
  const ids: number[] = []
  for (const byte of bytes) {
    const id = vocab.get(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`)
    if (id === undefined) return undefined
    ids.push(id)
  }
  return ids
}
