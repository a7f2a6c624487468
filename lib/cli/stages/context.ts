import type { Device } from "../../device/device.js";
import type { Config } from "../config/schema.js";
import type { Progress } from "../progress.js";
import type { Run } from "../run/run.js";

/** What every stage is given. */
export interface Context {
  config: Config;
  device: Device;
  run: Run;
  progress: Progress;
}
