/** A kernel: an entry point of kernels/wgsl/<files>, whose texts are joined. */
export interface Kernel {
  files: readonly string[];
  entry: string;
  /** Override constants. */
  overrides?: Record<string, number>;
  /** Sizes of arrays in registers, which WGSL takes from no override. */
  sizes?: Record<string, number>;
}

/** Compiles each kernel once, at its first use. */
export class Pipelines {
  private readonly made = new Map<string, GPUComputePipeline>();
  private readonly modules = new Map<string, GPUShaderModule>();
  private readonly better: Record<string, string>; // files that the adapter's features replace

  constructor(
    private readonly gpu: GPUDevice,
    private readonly source: (file: string) => string,
  ) {
    const { features } = gpu;
    this.better = {
      ...(features.has("subgroups") && { reduce: "reduce_subgroups" }),
      ...(features.has("shader-f16") && { operand_half: "operand_f16" }),
    };
  }

  get({ files, entry, overrides = {}, sizes = {} }: Kernel): GPUComputePipeline {
    const key = JSON.stringify([files, entry, overrides, sizes]);
    let pipeline = this.made.get(key);
    if (!pipeline) {
      const module = this.module(files, sizes);
      pipeline = this.gpu.createComputePipeline({
        label: entry,
        layout: "auto",
        compute: { module, entryPoint: entry, constants: overrides },
      });
      this.made.set(key, pipeline);
    }
    return pipeline;
  }

  private module(files: readonly string[], sizes: Record<string, number>): GPUShaderModule {
    const key = JSON.stringify([files, sizes]);
    let module = this.modules.get(key);
    if (!module) {
      const named = files.map((file) => this.better[file] ?? file);
      const enabled =
        (named.includes("reduce_subgroups") ? "enable subgroups;\n" : "") +
        (named.includes("operand_f16") ? "enable f16;\n" : "");
      const constants = Object.entries(sizes).map(([name, size]) => `const ${name} = ${size}u;\n`);
      module = this.gpu.createShaderModule({
        label: files.at(-1),
        code: enabled + constants.join("") + named.map((file) => this.source(file)).join("\n"),
      });
      this.modules.set(key, module);
    }
    return module;
  }
}
