"""The built-in example data set: messages that hold an order, answered with JSON of fixed keys.

Each row is ``{"system", "prompt", "completion"}``, and the completion is one compact JSON object::

    {"customer":"Mara Quill","items":[{"product":"copper kettle","quantity":3}],"date":"2026-03-14","express":true}

What has to be learned, besides the keys and their order:

* ``customer`` is the person or shop that orders, not other people whom the message mentions;
* ``product`` is singular and ``quantity`` a number, although messages say "three copper kettles";
* goods that are only talked about (an earlier delivery, say) are not part of the order;
* ``date`` is an ISO date, although messages write dates in many ways (numeric dates are day first);
* ``express`` is true only if the message asks for speed; without a word about it, it is false.

The two parts share the closed vocabulary (number words, month names, the JSON keys) and nothing else:
no sentence, greeting, layout, quantity notation, date format, name or product of the held-out rows
is in the training rows, which :func:`assert_disjoint` proves.

``python -m runner.examples.orders`` rewrites both files, byte for byte the same each time.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, fields
from pathlib import Path

TRAIN_FILE = Path(__file__).resolve().with_name("orders_train.jsonl")
EVAL_FILE = TRAIN_FILE.with_name("orders_eval.jsonl")
SEED, TRAIN_ROWS, EVAL_ROWS = 20260314, 480, 100
SYSTEM = "Extract the order as JSON: customer, items (product, quantity), date, express."

Row = dict[str, str]
Texts = tuple[str, ...]


def _texts(text: str) -> Texts:
    """The entries of a list that is written as ``first | second | ...``; ``/`` is a line break."""
    return tuple(" ".join(entry.split()).replace("/", "\n") for entry in text.split("|"))


MONTHS = _texts("January|February|March|April|May|June|July|August|September|October|November|December")
NUMBER_WORDS = _texts(
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    "seventeen|eighteen|nineteen|twenty"
)


@dataclass(frozen=True)
class Pool:
    """All the material from which one part of the data is composed."""

    first_names: Texts
    last_names: Texts
    shops: Texts
    adjectives: Texts
    nouns: Texts
    frames: Texts  # whole messages
    greetings: Texts
    requests: Texts  # the sentence around the items
    layouts: tuple[tuple[str, str, str], ...]  # of an item list: its start, its separator, the last separator
    quantities: Texts  # {n} digits or {w} a word; {p} plural or {s} singular product
    deadlines: Texts
    dates: Texts
    urgent: Texts
    relaxed: Texts
    asides: Texts  # {k} a number, {x} goods: none of it ordered
    closings: Texts


TRAIN = Pool(
    first_names=_texts(
        "Mara|Tobin|Elsie|Jorun|Petra|Osman|Lidia|Casper|Nadia|Felix|Greta|Hamid|Ingrid|Jonas|Keiko|Lorcan|Mirela|"
        "Nestor|Olga|Pavel|Rosa|Samir|Tilda|Ugo|Vera|Willem|Yara|Zeno|Bruna|Dario|Amira|Bashir|Celia|Desmond|"
        "Edith|Farid|Gemma|Hugo|Irina|Joel"
    ),
    last_names=_texts(
        "Quill|Brandt|Okoro|Selwyn|Marsh|Tanaka|Ferrow|Lindqvist|Adair|Bellamy|Castellan|Dunmore|Ekholm|Farrow|"
        "Galloway|Harker|Imani|Jessop|Kovar|Larkspur|Moreau|Nyberg|Oduya|Pellham|Ravenel|Stroud|Thackery|Ulmer|"
        "Vasko|Wexley|Yilmaz|Zeller|Ashdown|Birchall|Corwin|Delacroix"
    ),
    shops=_texts(
        "Pinewick Bakery|Cafe Morrowlight|Old Ferry Books|Tannerby & Sons|Hollowgate School|The Brass Lantern Inn|"
        "Studio Verdell|Larchfield Clinic|Nookmere Garden Centre|Hotel Astravale|Two Rivers Print Shop|"
        "Ostmark Rowing Club|Fernhill Nursery|Atelier Quenby|Saltmarsh Brewery|Wickstead Pharmacy"
    ),
    adjectives=_texts(
        "copper|blue|wooden|folding|large|ceramic|striped|green|leather|steel|small|round|cotton|silver|glass|"
        "yellow|heavy|portable|woollen|enamel|white|tall|waterproof|electric|bamboo"
    ),
    nouns=_texts(
        "kettle|lamp|notebook|chair|mug|scarf ring|garden hose|shelf bracket|umbrella|teapot|desk|blanket|candle|"
        "water bottle|picture frame|doormat|bread tin|apron|backpack|pillow|hammer|bucket|mirror|toolbox|"
        "plant pot|coat hook|serving tray|wall clock|torch|stool|basket|cushion|paint brush|ladder|vase|lunch box|"
        "flower box|door handle|bench|rug|radio|curtain|whistle|saucepan|extension cord"
    ),
    frames=_texts(
        "{greeting}/{request} {deadline} {speed}/{closing}|{greeting}/{request}/{deadline} {speed}/{closing}|"
        "{greeting} {aside} {request} {deadline} {speed} {closing}|{request} {deadline} {aside} {speed} {closing}|"
        "{greeting}/{aside} {request} {speed} {deadline}/{closing}|{request}/{speed} {deadline} {closing}|"
        "{greeting} {request} {speed} {deadline}/{closing}|{greeting} {deadline} {request} {speed}/{closing}|"
        "{greeting}/this is {customer}. {request} {deadline} {speed}|"
        "{customer} here. {aside} {request} {deadline} {speed}|"
        "{greeting} I am writing for {customer}. {request} {speed} {deadline}|"
        "{greeting} my name is {customer}. {request} {deadline} {speed} Thanks!|"
        "{request} {deadline} {speed} Please book it under {customer}.|"
        "{deadline} {speed} {request} {aside} The order is for {customer}.|"
        "Customer: {customer}/Items: {items}/Deliver by: {date}/Express: {yes_no}|"
        "Name: {customer}/Date: {date}/Express delivery: {yes_no}/Goods: {items}|"
        "ORDER FORM/{items}/for {customer}/due {date}/express {yes_no}|"
        "From: {customer}/Subject: order/{request} {deadline} {speed}|"
        "From: {customer}/Subject: order for {date}/{aside} {request} {speed}"
    ),
    greetings=_texts(
        "Hi,|Hello,|Hello team,|Good morning,|Hi Ines,|Dear Mr Abbot,|Dear sales team,|Hey Marek,|Good day,|"
        "Hello Sofia,"
    ),
    requests=_texts(
        "Please send us {items}.|I would like to order {items}.|Could you ship {items}?|We want to buy {items}.|"
        "Can I get {items}?|Please put me down for {items}.|Our order: {items}.|I need {items}.|"
        "We would like {items}, please.|Kindly reserve {items} for us.|Here is what we need: {items}.|"
        "This time we are ordering {items}."
    ),
    layouts=(
        ("", ", ", " and "),
        ("", ", ", ", "),
        ("", " and ", " and "),
        ("", ", ", " plus "),
        ("", " + ", " + "),
        ("\n- ", "\n- ", "\n- "),
        ("\n* ", "\n* ", "\n* "),
        ("\n", "\n", "\n"),
    ),
    quantities=_texts(
        "{n} {p}|{w} {p}|{n} {p}|{w} {p}|{n}x {p}|{s} x {n}|{s} x{n}|{s} ({n})|{s} - {n}|{n} of the {p}|"
        "{s}, quantity {n}|{p} ({w})|{n} pieces of {s}"
    ),
    deadlines=_texts(
        "We need it by {date}.|It has to be here on {date}.|Delivery by {date}, please.|"
        "They should arrive before {date}.|The date we have in mind is {date}.|Our deadline is {date}.|"
        "Please deliver on {date}.|It is for an event on {date}.|{date} would be the latest day for us.|"
        "We open on {date} and want it there by then."
    ),
    dates=tuple(
        ["{d} {month} {y}", "{month} {d}, {y}", "{dd}/{mm}/{y}", "{d}/{m}/{y}", "{d}{th} {month} {y}", "{mon} {d}, {y}", "{month} {d}{th} {y}", "{dd}-{mm}-{y}", "{y}-{mm}-{dd}", "{d} {mon} {y}"]
    ),
    urgent=_texts(
        "Please use express delivery.|It is urgent.|We are in a hurry, so send it the fastest way.|"
        "We will gladly pay extra for faster shipping.|Please treat this as a priority.|"
        "Send it as quickly as you can.|Overnight shipping, please.|We cannot wait, so choose the quick service.|"
        "Make it express.|Time is short, so please speed it up.|This one is a rush job.|Please hurry!"
    ),
    relaxed=_texts(
        "Standard delivery is fine.|There is no hurry.|It is not urgent.|No need for express.|"
        "The cheapest shipping will do.|Take your time.|Please do not pay extra for speed.|"
        "Slow shipping is fine with us.|Normal post is good enough.|We are in no rush at all.|"
        "Ordinary shipping, please, not the fast one.|It can wait a little."
    ),
    asides=_texts(
        "The {k} {x} you sent last month were perfect.|Thanks for the quick answer yesterday.|"
        "Our phone number is still 555 0{k}{k}.|Ines told me to write to you.|"
        "We saw your catalogue on page {k}.|The invoice for the {x} has been paid.|"
        "We moved to {k} Mill Lane in spring.|Marek says hello.|My last order was {k} {x}.|"
        "Sofia from your office was very helpful.|We have no more space for {x}.|The weather here is awful."
    ),
    closings=_texts(
        "Regards, {customer}|Best wishes,/{customer}|Thanks, {customer}|Thank you!/{customer}|"
        "Kind regards/{customer}|Yours, {customer}|{customer}|- {customer}|Many thanks from {customer}|"
        "Bye, {customer}"
    ),
)

HELD_OUT = Pool(
    first_names=_texts(
        "Anneke|Blaise|Corinna|Dmitri|Eloise|Fergus|Hanna|Ismael|Juno|Kamil|Leonie|Matteo|Noor|Oriel|Quentin|"
        "Renata|Soren|Thalia|Viggo|Wanda"
    ),
    last_names=_texts(
        "Abernal|Bristow|Cavendell|Dragomir|Esterly|Fenwick|Grunwald|Hollis|Ivarsson|Kestrel|Lockhart|Mwangi|"
        "Norcott|Ostrander|Pemberley|Rosario|Szabo|Tremaine|Underhay|Whitlock"
    ),
    shops=_texts(
        "Bramblecote Library|Restaurant Solenne|Kingsdale Cycles|Fogarty Boatyard|Museum of Elmstow|"
        "Violet Door Theatre"
    ),
    adjectives=_texts("red|plastic|brass|linen|black|oak|oval|canvas|marble|orange|rubber|velvet"),
    nouns=_texts(
        "spoon|bookcase|guitar strap|table cloth|tent|watering can|helmet|pencil case|oven mitt|suitcase|"
        "bird feeder|mattress cover|jug|sofa|door bell|fan|sponge|hair clip|tripod|bowl"
    ),
    frames=_texts(
        "{greeting}//{aside}/{request}/{speed}/{deadline}//{closing}|"
        "{greeting} {request} {aside} {deadline} {speed} {closing}|{speed} {request} {deadline}/{closing}|"
        "{greeting} you are speaking with {customer}. {request} {aside} {speed} {deadline}|"
        "{request} {speed} {deadline} All of it goes to {customer}.|"
        "Buyer = {customer}/Wanted = {items}/Needed on = {date}/Express = {yes_no}"
    ),
    greetings=_texts("Greetings,|Good evening,|Dear shop,|Hi there Bruno,|To whom it may concern,"),
    requests=_texts(
        "Would you pack {items} for me?|Time to restock: {items}.|We hereby order {items}.|"
        "Put together {items}, if you would.|My shopping list is {items}."
    ),
    layouts=(
        ("", "; ", "; "),
        ("", " / ", " / "),
        ("", ", ", " as well as "),
        ("\n> ", "\n> ", "\n> "),
    ),
    quantities=_texts("{s}: {n}|{n} units of {s}|{w} pieces of the {s}|{s} [{n}]|{s} * {n}|exactly {w} {p}"),
    deadlines=_texts(
        "Everything must reach us no later than {date}.|Target day: {date}.|Have it at our door by {date}.|"
        "The goods are wanted for {date}."
    ),
    dates=tuple(["{dd}.{mm}.{y}", "the {d}{th} of {month}, {y}", "{d}-{mon}-{y}", "{y}/{mm}/{dd}"]),
    urgent=_texts(
        "Fast-track this order.|Speedy dispatch is a must.|Please rush this one to us.|"
        "Ship it by the express service.|We need this in a great hurry."
    ),
    relaxed=_texts(
        "Regular shipping suits us.|No rush on this one.|Nothing urgent here.|Economy post is enough.|"
        "Express is not needed."
    ),
    asides=_texts(
        "By the way, the {k} {x} from spring still look great.|Bruno gave me this address.|"
        "We are now at number {k}, Canal Street.|Your voucher {k}{k}7 did not work.|"
        "A friend of mine bought {x} from you."
    ),
    closings=_texts("Cheers, {customer}|Sincerely,/{customer}|Signed: {customer}|With gratitude, {customer}"),
)


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _date(rng: random.Random, pattern: str) -> tuple[str, str]:
    """A date as the message writes it, and as ISO."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.choice((2026, 2027))
    th = "th" if 4 <= day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    name = MONTHS[month - 1]
    text = pattern.format(
        d=day, dd=f"{day:02}", th=th, m=month, mm=f"{month:02}", month=name, mon=name[:3], y=year
    )
    return text, f"{year}-{month:02}-{day:02}"


def _items(rng: random.Random, pool: Pool) -> tuple[str, list[dict[str, str | int]]]:
    """An item list as the message writes it (in one notation), and as data."""
    notation, (text, separator, last) = rng.choice(pool.quantities), rng.choice(pool.layouts)
    nouns = rng.sample(pool.nouns, rng.choice((1, 1, 1, 2, 2, 3)))
    items: list[dict[str, str | int]] = []
    for index, noun in enumerate(nouns):
        product = f"{rng.choice(pool.adjectives)} {noun}" if rng.random() < 0.7 else noun
        number = rng.randint(2, 20 if "{w}" in notation or rng.random() < 0.5 else 99)
        word = NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else ""
        text += "" if index == 0 else last if index == len(nouns) - 1 else separator
        text += notation.format(n=number, w=word, s=product, p=_plural(product))
        items.append({"product": product, "quantity": number})
    return text, items


def _row(rng: random.Random, pool: Pool) -> Row:
    """Compose one message and its answer."""
    person = f"{rng.choice(pool.first_names)} {rng.choice(pool.last_names)}"
    customer = rng.choice(pool.shops) if rng.random() < 0.25 else person
    date, iso = _date(rng, rng.choice(pool.dates))
    text, items = _items(rng, pool)
    request = rng.choice(pool.requests)
    if text.startswith("\n"):  # the items stand on lines of their own, so the sentence ends before them
        request = request.partition("{items}")[0].rstrip(" :") + ":{items}\n"
    express = rng.random() < 0.5
    speed = rng.choice(pool.urgent if express else pool.relaxed)
    if not express and rng.random() < 0.25:
        speed = ""
    used = {word for item in items for word in str(item["product"]).split()}
    spare = rng.choice([noun for noun in pool.nouns if not used & set(noun.split())])
    message = rng.choice(pool.frames).format(
        customer=customer,
        date=date,
        items=text,
        speed=speed,
        yes_no="yes" if express else "no",
        greeting=rng.choice(pool.greetings),
        request=request.format(items=text),
        aside=rng.choice(pool.asides).format(k=rng.randint(2, 9), x=_plural(spare)),
        deadline=rng.choice(pool.deadlines).format(date=date),
        closing=rng.choice(pool.closings).format(customer=customer),
    )
    lines = (" ".join(line.split()) for line in message.strip().split("\n"))
    answer = {"customer": customer, "items": items, "date": iso, "express": express}
    return {
        "system": SYSTEM,
        "prompt": "\n".join(lines),
        "completion": json.dumps(answer, separators=(",", ":")),
    }


def make_rows(seed: int, pool: Pool, count: int) -> list[Row]:
    """``count`` rows, no two of which have the same answer."""
    rng = random.Random(seed)
    rows: dict[str, Row] = {}
    while len(rows) < count:
        row = _row(rng, pool)
        rows.setdefault(row["completion"], row)
    return list(rows.values())


def assert_disjoint(train: list[Row], held_out: list[Row]) -> None:
    """Prove that no phrase, layout, notation, date format, name or product is in both parts."""
    for field in fields(Pool):
        if common := set(getattr(TRAIN, field.name)) & set(getattr(HELD_OUT, field.name)):
            raise AssertionError(f"{field.name}: {sorted(common)} are in both parts")
    for key in ("prompt", "completion"):
        if {row[key] for row in train} & {row[key] for row in held_out}:
            raise AssertionError(f"a held-out {key} is among the training rows")
    seen = "\n".join(row["prompt"] + row["completion"] for row in train).lower()
    for row in held_out:
        answer = json.loads(row["completion"])
        for text in (answer["customer"], *(item["product"] for item in answer["items"])):
            if text.lower() in seen:
                raise AssertionError(f"{text!r} occurs in a training row")


def main() -> None:
    """Write both files."""
    train, held_out = make_rows(SEED, TRAIN, TRAIN_ROWS), make_rows(SEED + 1, HELD_OUT, EVAL_ROWS)
    assert_disjoint(train, held_out)
    for path, rows in ((TRAIN_FILE, train), (EVAL_FILE, held_out)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
        print(f"{path.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
