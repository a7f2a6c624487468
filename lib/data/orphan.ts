import { workerData } from "node:worker_threads";

// A thread that ends its process once that is no longer the child of process `workerData`; the main
// thread may be at work for ever.

setInterval(() => process.ppid === workerData || process.kill(process.pid, "SIGKILL"), 500);
