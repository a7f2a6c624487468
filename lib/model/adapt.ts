import { typeError } from "../device/errors.js";
import { Random } from "../device/philox.js";
import { run } from "../tensor/op.js";
import { scale } from "../tensor/ops/elementwise.js";
import { scope, Tensor } from "../tensor/tensor.js";
import { loraA, loraOf, loraShapes, type LoraOptions } from "./lora.js";
import { Transformer } from "./transformer.js";
import { weightShapes } from "./weights.js";

/** The number of the stream from which adapters are drawn, apart from those of other stages. */
const LORA_STREAM = 56;

/**
 * A model with a LoRA adapter, over the same memory: only the adapter is trained, and the score's
 * head, of which it has its own. A model that has an adapter already gives a copy of it, so that it
 * goes on from there beside this one.
 *
 * @param options  rank, alpha and targets; those of the adapter that is there by default
 * @param seed     of what is drawn: A, and another head than this model's
 * @param headKind logits or a score; that of the model by default
 * @throws TypeError `LORA` for a target that the model does not have, or an adapter unlike the one
 *   that is there; RangeError `RANGE`
 */
export function withAdapter(
  model: Transformer,
  options: LoraOptions | undefined = model.lora,
  seed = 0,
  headKind: "logits" | "score" = model.headKind,
): Transformer {
  const { config, device } = model;
  const lora = options && loraOf(config, options);
  if (!lora) throw typeError("LORA", "the model has no adapter, wanted options for one");
  if (model.lora && JSON.stringify(model.lora) !== JSON.stringify(lora))
    throw typeError(
      "LORA",
      `the model has an adapter, ${JSON.stringify(model.lora)}; ${JSON.stringify(lora)} wants it merged first`,
    );
  const other = model.base(headKind, lora);
  weightShapes(config, headKind).forEach(({ name, shape, deviation }, stream) => {
    const shared = other.parameters.get(name);
    if (shared && name !== "score") return;
    if (shared) other.set(name, model.copied(name));
    else other.set(name, run("normal", { seed, stream, mean: 0, deviation, y: Tensor.empty(shape, "f32", device) }).y);
    shared?.dispose();
  });
  loraShapes(config, lora).forEach(({ name, shape: [rows, columns], bound }, i) => {
    const random = new Random(seed, LORA_STREAM).at(i);
    const drawn = () =>
      Float32Array.from({ length: rows * columns }, () => (bound ? bound * (2 * random.uniform() - 1) : 0));
    other.set(name, model.lora ? model.copied(name) : Tensor.from(drawn(), [rows, columns], device));
  });
  return other;
}

/**
 * A model without adapter, f32, with its own weights: W + alpha / rank B A. Its outputs are the
 * adapter's within rounding.
 */
export function mergeAdapter(model: Transformer): Transformer {
  const { config, headKind, device, lora } = model;
  const other = new Transformer(config, headKind, device);
  for (const { name } of weightShapes(config, headKind)) {
    const y = model.copied(name);
    other.set(name, y);
    const layer = name.replace(/\.weight$/, "");
    if (!lora || !model.parameters.has(`${layer}.loraB`)) continue;
    scope(() => {
      const dy = scale(model.copied(`${layer}.loraB`), lora.alpha / lora.rank);
      run("accumulate", { x: run("linearGradInput", { dy, weight: model.copied(loraA(layer, config)) }).dx, y });
    });
  }
  return other;
}

/**
 * The mean of models of one shape, weight by weight, in f32; adapters count as the models that they
 * make. The mean of models that were trained from one base, with other seeds or settings, is as a
 * rule better than any of them, and as fast as one (Wortsman et al. 2022; for reward models, Ramé
 * et al. 2024).
 * @throws TypeError `MODEL` for models of other shapes or another head
 */
export function averageModels(models: readonly Transformer[]): Transformer {
  const sizes = ({ config, headKind }: Transformer) =>
    JSON.stringify([config.kind, headKind, weightShapes(config, headKind).map(({ shape }) => shape)]);
  models.forEach((model, i) => {
    if (sizes(model) !== sizes(models[0]))
      throw typeError("MODEL", `models[${i}] has other weights than models[0], wanted models of one shape`);
  });
  const mean = mergeAdapter(models[0]);
  for (const other of models.slice(1)) {
    const model = mergeAdapter(other);
    for (const [name, { value: x }] of model.parameters) run("accumulate", { x, y: mean.parameter(name).value });
    model.dispose();
  }
  for (const [name, parameter] of mean.parameters) {
    mean.set(name, scale(parameter.value, 1 / models.length));
    parameter.dispose();
  }
  return mean;
}
