export { reshape } from "./reshape.js";
