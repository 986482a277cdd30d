/**
 * Defines `Symbol.dispose` if the runtime lacks it: realms of `node:vm`, which Jest uses, do not have it. Classes of this
 * package define `[Symbol.dispose]`, and the `using` of compiled callers looks it up, so it is set once for the whole realm.
 */
if ((Symbol as { dispose?: symbol }).dispose === undefined) {
  Object.defineProperty(Symbol, 'dispose', { value: Symbol.for('Symbol.dispose'), configurable: true, writable: true })
}
