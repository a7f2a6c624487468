// The elements of an array in JSON, found in its bytes as they come, so that only one of them is in
// memory.

const [QUOTE, BACKSLASH, COMMA, OPEN, CLOSE, OPEN_BRACE, CLOSE_BRACE] = Buffer.from('"\\,[]{}');

/**
 * Takes an array's bytes chunk by chunk. It looks at strings and brackets only: whether an element
 * is JSON, its reader sees.
 */
export class Elements {
  private parts: Uint8Array[] = [];
  private length = 0; // of the parts
  private count = 0;
  private depth = 0;
  private inString = false;
  private escaped = false;
  private ended = false;

  /** @param limit bytes of an element at most */
  constructor(private readonly limit: number) {}

  /**
   * The bytes of each element that ends in the chunk.
   * @throws Error that says what is wrong with the array
   */
  *push(chunk: Uint8Array): Generator<Uint8Array> {
    let start = 0;
    for (let i = 0; i < chunk.length && !this.ended; i++) {
      const byte = chunk[i];
      if (this.inString) {
        if (this.escaped) this.escaped = false;
        else if (byte === BACKSLASH) this.escaped = true;
        else if (byte === QUOTE) this.inString = false;
      } else if (byte === QUOTE) this.inString = true;
      else if (byte === OPEN || byte === OPEN_BRACE) {
        if (this.depth++ === 0) start = i + 1;
      } else if (byte === CLOSE || byte === CLOSE_BRACE) {
        if (--this.depth > 0) continue;
        const last = this.joined(chunk.subarray(start, i));
        if (this.count > 0 || !isBlank(last)) yield last;
        this.ended = true;
        start = i + 1;
      } else if (byte === COMMA && this.depth === 1) {
        this.count++;
        yield this.joined(chunk.subarray(start, i));
        start = i + 1;
      }
    }
    const rest = chunk.subarray(start);
    if (this.ended && !isBlank(rest)) throw new Error("something stands after the end of the array");
    if (this.depth > 0) this.keep(rest);
  }

  /** @throws Error if the array has not ended */
  end(): void {
    if (!this.ended) throw new Error("the array has no end");
  }

  private keep(part: Uint8Array): void {
    this.parts.push(part);
    if ((this.length += part.length) > this.limit)
      throw new Error(`it has more than ${this.limit} bytes, the limit of a row`);
  }

  private joined(part: Uint8Array): Uint8Array {
    this.keep(part);
    const whole = Buffer.concat(this.parts);
    this.parts = [];
    this.length = 0;
    return whole;
  }
}

const isBlank = (bytes: Uint8Array) => bytes.every((byte) => byte === 0x20 || (byte >= 0x09 && byte <= 0x0d));
