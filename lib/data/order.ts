import type { Random } from "../device/philox.js";

/**
 * The places 0 to `count` - 1 in an order that is drawn anew for each epoch. The order is kept, in
 * 4 bytes a place, until another epoch is asked for. Then it is overwritten.
 * @param random the random numbers of an epoch
 */
export function orders(count: number, random: (epoch: number) => Random): (epoch: number) => Uint32Array {
  const order = new Uint32Array(count);
  let kept: number | undefined;
  return (epoch) => {
    if (epoch !== kept) {
      for (let place = 0; place < count; place++) order[place] = place;
      random(epoch).shuffle(order);
      kept = epoch;
    }
    return order;
  };
}
