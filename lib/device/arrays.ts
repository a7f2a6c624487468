import { types } from "node:util";

type Numbers = Float32Array | Float64Array | Int32Array | Uint16Array | BigInt64Array;
const CLASSES = { Float32Array, Float64Array, Int32Array, Uint16Array, BigInt64Array };

// What a typed array is lies in slots that no property, subclass or proxy hides. These getters read
// the slots, in every realm.
const ofArrays = Object.getPrototypeOf(Uint8Array.prototype) as object;
const getter = (of: object, name: string | symbol) =>
  Object.getOwnPropertyDescriptor(of, name)!.get! as (this: unknown) => unknown;
const tag = getter(ofArrays, Symbol.toStringTag);
const length = getter(ofArrays, "length");
const slots = (of: object) => [getter(of, "buffer"), getter(of, "byteOffset"), getter(of, "byteLength")] as const;
const [ofTyped, ofView] = [slots(ofArrays), slots(DataView.prototype)];

/** The class of a typed array; undefined for what is none, whatever it says. */
export const arrayClass = (value: unknown): string | undefined => tag.call(value) as string | undefined;

/**
 * What a value is, for messages and to look up: the class of a typed array, else what its tag says.
 */
export function kindOf(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  const known = arrayClass(value) ?? (types.isDataView(value) ? "DataView" : undefined);
  if (known) return known;
  try {
    const said = Object.prototype.toString.call(value).slice(8, -1);
    return said in CLASSES ? "Object" : said;
  } catch {
    return typeof value;
  }
}

/**
 * The numbers of a typed array as an array of its class, without what a subclass or a property
 * adds: over the same memory, but a copy of memory that other threads may write. Undefined for what
 * is none of these.
 */
export function plain(value: unknown): Numbers | undefined {
  const Class = CLASSES[arrayClass(value) as keyof typeof CLASSES];
  if (!Class) return undefined;
  const count = length.call(value) as number;
  if (count === 0) return new Class(0); // of a buffer that is gone, perhaps
  const [buffer, byteOffset] = ofTyped.map((slot) => slot.call(value)) as [ArrayBuffer, number];
  const numbers = new Class(buffer, byteOffset, count);
  return types.isSharedArrayBuffer(buffer) ? numbers.slice() : numbers;
}

/** The bytes of a view; undefined for what is none. */
export function bytesIn(value: unknown): Uint8Array | undefined {
  if (!ArrayBuffer.isView(value)) return undefined;
  try {
    const [buffer, byteOffset, byteLength] = (types.isDataView(value) ? ofView : ofTyped).map((slot) =>
      slot.call(value),
    ) as [ArrayBuffer, number, number];
    return byteLength === 0 ? new Uint8Array(0) : new Uint8Array(buffer, byteOffset, byteLength);
  } catch {
    return new Uint8Array(0); // a DataView of a buffer that is gone
  }
}
