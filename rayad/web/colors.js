/**
 * Colours as rayad/evaluation/figures.py has them: a place by its healthy quantile, from 0.5, transparent, to
 * 0.999, strong, on a logarithmic scale of the rest; the same for every image.
 */

const [LOW, HIGH] = [0.5, 0.999];
const rest = (quantile) => -Math.log10(1 - Math.min(Math.max(quantile, LOW), HIGH));

/** matplotlib's plasma from 0.05 to 1, 256 times red, green, blue. */
const PLASMA =
  "KgWTLAWULgWVLwWWMQWXMwWXNQSYNwSZOASaOgSaPASbPgScPwScQQSdQwOeRAOeRgOfSAOfSAOfSQOgSwOhTAKhTgKiUAKiUQKjUwKjVQKkVgGk" +
  "WAGkWQGlWwGlXAGmXgGmYAGmYQCnYwCnZACnZgCnZwCoZwCoaQCoagCobACobgCobwCocQCocgGodAGodQGodwGoeAGoegKoewKofQOofgOogASo" +
  "gQSngwWnhAWnhgamhwemhwemiAimigmliwqljQuljgykjw2kkQ6jkg+jlBCilRGhlhOhmBSgmRWfmhafnBeenRidnhmdoBqcoRuboh2aox6aox6a" +
  "pR+ZpiCYpyGXqCKWqiOVqySUrCaUrSeTriiSsCmRsSqQsiuPsyyOtC6NtS+MtjCLtzGKuDKJujOIuzSIuzSIvDWHvTeGvjiFvzmEwDqDwTuCwjyB" +
  "wz2AxD5/xUB+xkF9x0J8yEN7yUR6ykV6y0Z5zEd4zEl3zUp2zkt1z0x0z0x00E1z0U5y0k9x01Fx1FJw1VNv1VRu1lVt11Zs2Fdr2Vhq2lpq2ltp" +
  "21xo3F1n3V5m3l9l3mFk32Jj4GNj4GNj4WRi4mVh4mZg42hf5Gle5Wpd5Wtd5mxc525b529a6HBZ6XFY6XJX6nRX63VW63ZV7HdU7XlT7XpS7ntR" +
  "73xR73xR735Q8H9P8IBO8YFN8YNM8oRL84VL84dK9IhJ9IlI9YtH9YxG9o1F9o9E95BE95FD95NC+JRB+JVA+Zc/+Zg++Zg++Zo++ps9+pw8+p47" +
  "+586+6E5+6I4/KM4/KU3/KY2/Kg1/Kk0/asz/awz/a4y/a8x/bEw/bIv/bQv/bUu/bUu/rct/rgs/ros/rsr/r0q/r4q/sAp/cIp/cMo/cUn/cYn" +
  "/cgn/com/csm/M0l/M4l/NAl/NIl+9Mk+9Uk+9ck+9ck+tgk+tok+dwk+d0l+N8l+OEl9+Il9+Ql9uYm9ugm9ekm9esn9O0n8+4n8/An8vIn8fQm" +
  "8fUl8Pck8Pkh8Pkh";

/** matplotlib's RdBu_r. */
const RED_BLUE =
  "BTBhBjJkBzRnCDZqCThtCjtwDD1zDT92DkF5D0N7EEV+EUeBEkmEE0yHFE6KFVCNF1KQGFSTGVaWGliZG1qcHFyfHV+iHmGlH2OoIGWrImesI2mt" +
  "JGquJmyvJ26wKHCxKnGyK3OzLHW0Lne1L3m1MHq2Mny3M364NIC5NoG6N4O7OIW8Ooe9O4i+PIq+Poy/P47AQI/BQpHCQ5PDRpXESZfFTJnGT5vH" +
  "Up3IVp/JWaHKXKPLX6XNYqfOZanPaKvQa6zRbq7ScbDTdbLUeLTVe7bWfrjXgbrYhLzZh77aisDbjcLckMTdk8belsffmMjgm8ngncvhoMzios3j" +
  "pc7jp9DkqdHlrNLlrtPmsdXns9bottfouNjpu9rqvdvqwNzrwt3sxd/sx+DtyuHuzOLvz+Tv0eXw0ubw1Obx1efx1+jx2Onx2uny2+ry3evy3uvy" +
  "4Ozz4e3z4+3z5O705u/05/D06fD06vH17PL17fL17/P18PT28vX28/X29fb39vf39/b29/X0+PTy+PPw+PLv+PHt+fDr+e/p+e7n+e3l+evj+urh" +
  "+unf+uje+ufc++ba++XY++TW++PU/OLS/ODQ/N/P/N7N/d3L/dzJ/dvH/dnE/NfC/NW//NO8+9C5+863+8y0+sqx+siv+cas+cSp+cKn+L+k+L2h" +
  "+Lue97mc97eZ97WW9rOU9rGR9q+O9ayL9aqJ9aiG9KaD86SB8qF/8Z598Jx775l57pZ37JN065Fy6o5w6Ytu6Ils5oZq5YNo5IBm435k4nti4Xhg" +
  "33Ze3nNc3XBZ3G5X22tV2mhT2GVR12NP1mBN1V1M01pK0lhJ0FVIz1JGzk9FzExEy0lCyUdByERAxkE+xT49xDs8wjg6wTY5vzM4vjA2vS01uyo0" +
  "uigyuCUxtyIwth8utBwtsxkssRgrrhcqqxYqqBUppRQpohMonxIonBEnmRAnlg8nkw4mkA0mjQwligslhwokhAkkgQgjfwgjfAcieQYidgUhcwQh" +
  "cAMgbQIgagEfZwAf";

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

/** A pixel of ImageData as one number, on the little-endian machines that browsers run on. */
export const pixel = (red, green, blue, alpha = 255) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

function table(base64, alpha) {
  const rgb = bytesOf(base64);
  return Uint32Array.from({ length: 256 }, (_, i) => pixel(rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], alpha(i / 255)));
}

const HEAT = table(PLASMA, (at) => Math.round(255 * 0.8 * Math.min(1.5 * at, 1)));
const CHANGE = table(RED_BLUE, () => 255);

/** The colour of a place; a quantile of NaN has none. */
export function heatColor(quantile) {
  if (Number.isNaN(quantile)) return 0;
  const at = (rest(quantile) - rest(LOW)) / (rest(HIGH) - rest(LOW));
  return HEAT[Math.min(255, Math.floor(256 * at))];
}

/** Gray of every value from 0 to `full` under a window. */
export function grayTable({ low, high, invert }, full) {
  const scale = 255 / Math.max(high - low, 1);
  return new Uint32Array(full + 1).map((_, value) => {
    const shade = Math.round(Math.min(Math.max((value - low) * scale, 0), 255));
    const gray = invert ? 255 - shade : shade;
    return pixel(gray, gray, gray);
  });
}

/** Colours of differences: 0 is the lowest, `full` the highest. */
export function changeTable(full) {
  return new Uint32Array(full + 1).map((_, value) => CHANGE[Math.min(255, Math.floor((256 * value) / full))]);
}

/** Paint the scale of healthy quantiles on a canvas, its share growing as the colours do. */
export function paintScale(canvas) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, 1);
  const words = new Uint32Array(image.data.buffer);
  words.forEach((_, i) => (words[i] = HEAT[Math.floor((256 * i) / canvas.width)]));
  for (let row = 0; row < canvas.height; row += 1) context.putImageData(image, 0, row);
}
