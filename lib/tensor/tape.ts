import { kindOf } from "../device/arrays.js";
import { notPromise, typeError, wantFunction } from "../device/errors.js";
import { filled, NOBODY } from "./direct.js";
import { run } from "./op.js";
import { Parameter, type Use } from "./parameter.js";
import { activeRecorder, recordedBy, type RecordedOp } from "./recorder.js";
import { scope, Tensor, tensorsIn, withOwner, type Owner } from "./tensor.js";

interface Entry extends RecordedOp {
  uses: Record<string, Use>;
}

/**
 * Reverse-mode differentiation over the op list. `record` runs a forward pass, `backward` runs
 * through it once in reverse and frees each op's tensors as it leaves them.
 */
export class Tape implements Owner {
  private readonly entries: Entry[] = [];
  private readonly owned = new Set<Tensor>();
  private readonly uses: Map<Parameter, number>;
  private readonly forgotten = new Map<Tensor, Entry>(); // and what makes them

  /**
   * @param term which loss term of the update this is: each has accumulators of its own
   * @param uses of the parameters so far, where this tape goes on from another
   */
  constructor(
    private readonly term = 0,
    uses: ReadonlyMap<Parameter, number> = new Map(),
  ) {
    this.uses = new Map(uses);
  }

  /** Takes a tensor as its own, to be freed with the tape. */
  adopt(tensor: Tensor): void {
    this.owned.add(tensor);
  }

  /**
   * Runs `f` and records its ops; the tensors that it returns are the caller's, the rest are the
   * tape's.
   * @throws TypeError `TAPE` if one records, `ASYNC` if `f` is asynchronous
   */
  record<T>(f: () => T): T {
    if (activeRecorder()) throw typeError("TAPE", "a tape is recording already");
    return this.recordWithin(f);
  }

  private recordWithin<T>(f: () => T): T {
    wantFunction("f", f);
    try {
      const result = recordedBy(this, () => withOwner(this, f));
      notPromise("record", result);
      for (const tensor of tensorsIn(result)) this.owned.delete(tensor);
      return result;
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** @internal `recomputed`, on the tape that records. */
  recompute(x: Tensor, f: (x: Tensor) => Tensor): Tensor {
    const before = new Map(this.uses); // a parameter's use is the same whenever f runs
    const first = new Tape(this.term, before);
    const y = first.recordWithin(() => f(x));
    for (const [parameter, count] of first.uses) this.uses.set(parameter, count);
    first.dispose();
    this.adopt(y);
    if (y.tracked)
      this.push({
        inputs: { x },
        outputs: { y },
        tensors: { x },
        gradient: ({ y: dy }) => {
          const again = new Tape(this.term, before);
          const z = again.recordWithin(() => f(x));
          again.adopt(z);
          const gradients = new Map([[z, dy!.reshape(dy!.shape)]]);
          again.unwind(gradients);
          return { x: gradients.get(x) };
        },
      });
    return y;
  }

  /** @internal `forget`, on the tape that records. */
  forget(x: Tensor): void {
    const entry = this.entries.findLast(({ outputs }) => Object.values(outputs).includes(x));
    if (!entry?.again) return;
    this.forgotten.set(x, entry);
    x.dispose();
  }

  private remember(x: Tensor): void {
    const entry = this.forgotten.get(x);
    if (!entry) return;
    this.forgotten.delete(x);
    for (const tensor of Object.values(entry.tensors)) this.remember(tensor);
    entry.again!();
  }

  /** @internal Called by `run` for an op with an input that a gradient flows to. */
  push(op: RecordedOp): void {
    const uses: Record<string, Use> = {};
    for (const [name, input] of Object.entries(op.inputs))
      if (input instanceof Parameter) {
        uses[name] = this.nextUse(input);
        this.uses.set(input, (this.uses.get(input) ?? 0) + 1);
      }
    for (const output of Object.values(op.outputs)) output.tracked = true;
    this.entries.push({ ...op, uses });
  }

  /** @internal The use that the parameter's next op is. */
  nextUse(parameter: Parameter): Use {
    return { term: this.term, count: this.uses.get(parameter) ?? 0 };
  }

  /**
   * Adds the gradients of the sum of `losses` to the parameters.
   * @param losses tensors of one element, made under `record`
   * @throws TypeError `SHAPE` for one of more elements, `TAPE` for one that was given twice or that
   *   this tape did not record since the last backward pass with a weight that learns, or where a
   *   loss op's output is not the end of the tape
   */
  backward(...losses: Tensor[]): void {
    for (const [i, loss] of losses.entries()) {
      if (!(loss instanceof Tensor)) throw typeError("ARGUMENT", `loss ${i} is ${kindOf(loss)}, wanted a tensor`);
      if (loss.size !== 1) throw typeError("SHAPE", `loss ${i} has shape [${loss.shape}], wanted one number`);
      if (losses.indexOf(loss) < i) throw typeError("TAPE", `loss ${i} was given before: scale it to count it twice`);
      if (!this.entries.some(({ outputs }) => Object.values(outputs).includes(loss)))
        throw typeError(
          "TAPE",
          `loss ${i} is not one that this tape recorded since its last backward pass, or no weight that learns leads to it`,
        );
    }
    const gradients = new Map<Tensor, Tensor>();
    for (const loss of losses) {
      const one = withOwner(NOBODY, () => filled(1, loss.shape, loss.device));
      ends.add(one);
      gradients.set(loss, one);
    }
    this.unwind(gradients);
  }

  /**
   * Runs through the entries in reverse; what is left in `gradients` is that of the inputs from
   * elsewhere.
   */
  private unwind(gradients: Map<Tensor, Tensor>): void {
    try {
      for (let entry = this.entries.pop(); entry; entry = this.entries.pop()) this.step(entry, gradients);
    } finally {
      this.dispose();
    }
  }

  private step(entry: Entry, gradients: Map<Tensor, Tensor>): void {
    const d: Record<string, Tensor | undefined> = {};
    let any = false;
    for (const [name, output] of Object.entries(entry.outputs)) {
      const gradient = gradients.get(output);
      if (!gradient) continue;
      any = true;
      d[name] = gradient;
    }
    const outputs = Object.values(entry.outputs);
    if (any)
      scope(() => {
        for (const tensor of Object.values(entry.tensors)) if (!outputs.includes(tensor)) this.remember(tensor);
        const into: Record<string, Tensor> = {};
        const needs = (name: string) => {
          const input = entry.inputs[name];
          return input instanceof Parameter ? input.trainable : (input?.tracked ?? false);
        };
        const results = entry.gradient(d, entry.tensors, {
          needs,
          into(name) {
            if (!needs(name)) return undefined;
            const input = entry.inputs[name];
            if (input instanceof Parameter) return input.accumulator(entry.uses[name]);
            return (into[name] ??= filled(0, input.shape, input.device));
          },
        });
        for (const [name, gradient] of Object.entries({ ...results, ...into })) {
          if (!gradient || !needs(name)) continue;
          const input = entry.inputs[name];
          if (input instanceof Parameter) run("accumulate", { x: gradient, y: input.accumulator(entry.uses[name]) });
          else this.add(gradients, input, gradient);
        }
        return [...gradients.values()];
      });
    for (const output of outputs) {
      this.forgotten.delete(output);
      const gradient = gradients.get(output);
      gradients.delete(output);
      if (gradient) release(gradient, gradients);
      if (this.owned.delete(output)) release(output, gradients);
    }
  }

  private add(gradients: Map<Tensor, Tensor>, input: Tensor, gradient: Tensor): void {
    const before = gradients.get(input);
    if (before) {
      gradients.set(input, run("add", { a: before, b: gradient }).y);
      release(before, gradients);
    } else gradients.set(input, gradient);
  }

  /** Frees what the tape still holds. */
  dispose(): void {
    for (const tensor of this.owned) tensor.dispose();
    this.owned.clear();
    this.forgotten.clear();
    this.entries.length = 0;
  }
  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

function activeTape(): Tape | undefined {
  const recorder = activeRecorder();
  return recorder instanceof Tape ? recorder : undefined;
}

/**
 * Computes f(x) and keeps x alone for the gradient: backward runs f again (gradient checkpointing,
 * Chen et al. 2016). No bit of a gradient changes. A loss has no place in f: its gradient comes
 * with its forward pass, which runs twice.
 */
export function recomputed(x: Tensor, f: (x: Tensor) => Tensor): Tensor {
  const tape = activeTape();
  return tape ? tape.recompute(x, f) : f(x);
}

/**
 * Frees outputs of ops that take next to no time (norms, activations), once the forward pass has
 * read them: backward computes each again where a gradient needs it. Without a tape it does
 * nothing.
 */
export function forget(...xs: Tensor[]): void {
  const tape = activeTape();
  for (const x of xs) tape?.forget(x);
}

// An op may hand the gradient that it got, or an output of its own, on as the gradient of an input.
function release(tensor: Tensor, gradients: Map<Tensor, Tensor>): void {
  for (const live of gradients.values()) if (live === tensor) return;
  tensor.dispose();
}

const ends = new WeakSet<Tensor>(); // the gradients, 1, of the losses that backward starts from

/**
 * Refuses a loss that is not the end of the tape: a gradient that came with its loss cannot be
 * multiplied later.
 */
export function endOfTape(op: string, d: Record<string, Tensor | undefined>): void {
  for (const [name, gradient] of Object.entries(d))
    if (gradient && (name !== "loss" || !ends.has(gradient)))
      throw typeError(
        "TAPE",
        `${op}: a loss ends the tape (give it a "scale" instead of multiplying it), and no gradient flows through its ${name}`,
      );
}
