/** Imported first: the addon that the tests then load is the one with a simulated GPU. */
process.env.RLHF_ADDON = new URL("../../build/simulator/Release/rlhf_kernels.node", import.meta.url).pathname;
