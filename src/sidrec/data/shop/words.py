"""Word lists the simulated shop writes its catalogue with.

Each subcategory has nouns (what a title calls the thing) and words (what descriptions say of it);
a category adds words that all its subcategories share. So texts reveal the hierarchy, coarse and
fine, without naming it. Every list was written for this shop; brands are invented.
"""

from __future__ import annotations

CATALOGUE: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "Camping": (
        "outdoor trail weatherproof packable campsite",
        {
            "Tents": ("tent shelter tarp", "poles guylines flysheet groundsheet pitching ripstop"),
            "Sleeping bags": ("sleeping-bag quilt bivvy", "down hood zip insulation loft fill"),
            "Camp stoves": ("stove burner cookset", "flame gas windshield simmer canister boil"),
            "Backpacks": ("backpack rucksack daypack", "straps litres hipbelt frame pockets load"),
            "Lanterns": ("lantern headlamp torch", "lumens beam rechargeable dimming bulb hang"),
            "Hiking poles": ("trekking-pole staff stick", "grip carbon tip telescopic wrist lock"),
        },
    ),
    "Kitchen": (
        "cook dishwasher kitchen recipe worktop",
        {
            "Knives": ("knife cleaver paring-knife", "blade edge steel sharpen bolster slicing"),
            "Pans": ("pan skillet wok", "sear induction nonstick rivet handle heat"),
            "Coffee makers": ("espresso-maker grinder kettle", "crema brew beans pour filter dose"),
            "Baking": ("cake-tin whisk rolling-pin", "dough flour oven bake pastry crust"),
            "Storage jars": (
                "jar canister lunchbox",
                "airtight lid pantry seal stackable leftovers",
            ),
            "Tableware": ("plate bowl mug", "glaze stoneware serving rim saucer dinner"),
        },
    ),
    "Garden": (
        "soil garden patio season bloom",
        {
            "Seeds": ("seed-packet bulb-set seedling", "sow germinate sprout packet tomato basil"),
            "Pruning": ("pruner loppers shears", "branch hedge bypass trim cut anvil"),
            "Watering": ("hose sprinkler watering-can", "nozzle spray drip tap pressure reel"),
            "Planters": ("planter pot trough", "terracotta drainage balcony roots glazed saucer"),
            "Bird feeders": (
                "feeder birdhouse birdbath",
                "finch perch suet nesting robin squirrel",
            ),
            "Lawn care": ("mower edger rake", "grass turf mulch rotary fertiliser stripe"),
        },
    ),
    "Music": (
        "sound tone musician practice stage",
        {
            "Guitars": ("guitar ukulele bass", "fretboard strings pickup neck chord spruce"),
            "Keyboards": ("keyboard synthesizer piano", "keys polyphony weighted octave pedal"),
            "Drums": ("drum cymbal cajon", "snare stick beat hardware kick shell"),
            "Microphones": ("microphone preamp interface", "cardioid vocal capsule phantom gain"),
            "Headphones": ("headphones earbuds monitors", "drivers ear noise-cancelling cups bass"),
            "Strings": ("string-set bow rosin", "violin cello gauge winding tension gut"),
        },
    ),
    "Beauty": (
        "skin gentle dermatologist fragrance-free daily",
        {
            "Moisturisers": ("cream lotion balm", "hydrate hyaluronic ceramide barrier dry"),
            "Shampoo": ("shampoo conditioner hair-mask", "scalp curls lather argan frizz rinse"),
            "Lipstick": ("lipstick gloss lip-liner", "matte pigment shade pout satin colour"),
            "Perfume": ("perfume cologne mist", "notes jasmine cedar amber spritz sillage"),
            "Sunscreen": ("sunscreen sun-stick after-sun", "spf mineral uva zinc beach broad"),
            "Nail care": ("nail-polish file cuticle-oil", "manicure topcoat lacquer chip nails"),
        },
    ),
    "Toys": (
        "children play imagination age gift",
        {
            "Building sets": ("brick-set blocks marble-run", "build snap tower pieces gears"),
            "Puzzles": ("jigsaw puzzle brain-teaser", "pieces solve picture interlocking corner"),
            "Board games": ("board-game card-game dice-set", "players turns strategy rulebook win"),
            "Plush": ("teddy plush-bear soft-toy", "cuddle fluffy stuffed bedtime hug huggable"),
            "Model trains": ("locomotive train-set carriage", "track rail gauge station signal"),
            "Craft kits": (
                "craft-kit bead-set paint-set",
                "glue glitter stencil colouring scissors",
            ),
        },
    ),
    "Sports": (
        "training athlete sweat performance fit",
        {
            "Running shoes": ("running-shoe trainer spike", "cushion heel midsole stride marathon"),
            "Yoga": ("yoga-mat yoga-block bolster", "pose stretch grip balance meditation"),
            "Cycling": ("helmet saddle bike-light", "handlebar chain ride tyre road pedal"),
            "Swimming": ("goggles swimsuit swim-cap", "pool lap chlorine lens silicone stroke"),
            "Weights": ("dumbbell kettlebell barbell", "cast-iron rep lift plate squat rack"),
            "Tennis": ("racket tennis-ball grip-tape", "court serve topspin strings baseline"),
        },
    ),
    "Office": (
        "desk work organised study productive",
        {
            "Notebooks": ("notebook planner sketchbook", "pages ruled dotted binding paper bullet"),
            "Pens": ("fountain-pen rollerball pencil", "ink nib refill writing barrel smooth"),
            "Chairs": ("office-chair stool footrest", "lumbar ergonomic armrest castors recline"),
            "Desk lamps": (
                "desk-lamp task-light clip-lamp",
                "led arm brightness glare switch warm",
            ),
            "Filing": ("folder binder archive-box", "documents tabs label index rings letters"),
            "Keyboards and mice": (
                "mechanical-keyboard mouse trackball",
                "switches click usb wireless",
            ),
        },
    ),
    "Pets": (
        "pet vet animal owner safe",
        {
            "Dog leads": ("lead harness collar", "walk pull buckle reflective puppy leash"),
            "Cat trees": ("cat-tree scratcher hammock", "sisal claws climb kitten perch nap"),
            "Aquariums": ("aquarium filter-pump tank-heater", "fish water tank gravel reef"),
            "Pet food": ("kibble treats wet-food", "protein grain-free chicken bowl digest"),
            "Grooming": ("brush clippers pet-shampoo", "coat fur shedding undercoat bath mats"),
            "Small pets": ("hutch hay-rack wheel", "rabbit hamster guinea-pig burrow bedding"),
        },
    ),
    "Home": (
        "room cosy interior decor living",
        {
            "Rugs": ("rug runner doormat", "pile woven tufted floor underfoot fringe"),
            "Curtains": ("curtain blind drape", "window blackout eyelet hem rod light"),
            "Cushions": ("cushion throw pillow", "sofa cover feather velvet zip fluffy"),
            "Candles": ("candle diffuser incense", "wax wick scent vanilla burn hours"),
            "Wall art": ("print poster canvas", "frame hang artist gallery wall ink"),
            "Bedding": (
                "duvet-set sheet mattress-topper",
                "cotton percale thread sleep pillowcase",
            ),
        },
    ),
    "Tools": (
        "workshop repair builder sturdy project",
        {
            "Drills": ("drill driver hammer-drill", "torque chuck battery bit cordless brushless"),
            "Saws": ("saw jigsaw-tool hacksaw", "teeth timber kerf rip plywood mitre"),
            "Hand tools": ("hammer spanner screwdriver", "handle forged socket ratchet bolt"),
            "Measuring": ("tape-measure level caliper", "accuracy millimetre laser bubble scale"),
            "Paint supplies": (
                "roller paintbrush masking-tape",
                "primer coat emulsion bristle wall",
            ),
            "Safety gear": ("gloves goggles-kit ear-defenders", "protect cut-resistant dust visor"),
        },
    ),
    "Books": (
        "reader chapter author story edition",
        {
            "Crime novels": (
                "thriller detective-novel mystery",
                "murder clue suspect inspector twist",
            ),
            "Science fiction": (
                "space-opera novel anthology",
                "galaxy robot alien future starship",
            ),
            "Cookbooks": (
                "cookbook recipe-book food-memoir",
                "dishes ingredients chef supper meals",
            ),
            "Travel guides": ("guidebook atlas travelogue", "city maps journey island itinerary"),
            "History": ("history biography chronicle", "empire war century king archive"),
            "Picture books": (
                "picture-book bedtime-book rhyme-book",
                "illustrated rabbit moon toddler",
            ),
        },
    ),
}
"""Category -> (shared words, {subcategory: (nouns, words)})."""

STYLES: dict[str, str] = {
    "classic": "classic timeless traditional",
    "modern": "modern sleek minimalist",
    "rugged": "rugged tough heavy-duty",
    "light": "lightweight slim compact",
    "colourful": "colourful bright playful",
    "natural": "natural organic sustainable",
}
"""Style -> adjectives."""

BRAND_STARTS = (
    *("Alder", "Brio", "Corva", "Dune", "Elmar", "Fenn"),
    *("Gale", "Hollin", "Isar", "Juno", "Kestrel", "Lumo"),
)
BRAND_ENDS = ("wick", "ford", "ano", "ley", "mark")
PRICE_WORDS = ("budget-friendly everyday", "well-made dependable", "premium handcrafted")
"""Words for cheap, middling and dear items of a subcategory."""

TITLES = (
    "{brand} {style} {noun}, {word1}, No. {number}",
    "{brand} {noun} {number} with {word1} and {word2}, {style}",
    "{style} {noun} by {brand}, series {number}, {word1}",
)
DESCRIPTIONS = (
    "A {tier} {noun} with {word1} and {word2}. Its {word3} makes it a {style} choice; "
    "made with {shared1} and {shared2} in mind.",
    "This {style} {noun} from {brand} has it all: {word3}, {word1} and {shared1} in one. "
    "Customers praise the {word2}. A {tier} piece for every {shared2} day.",
    "A {style} {noun} that brings {word2} and {word3}, with {word1} that lasts. "
    "For {shared1} and {shared2}: {tier}, as {brand} is known for.",
)
